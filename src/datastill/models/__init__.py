"""Networks with features and taps, and the factories that build them fresh."""

from datastill.models.base import Network, couples_samples, functional
from datastill.models.factory import NetworkFactory
from datastill.models.resnet import ResNet18, ResNet18AP
from datastill.models.resolve import (
    default_options,
    is_built_in,
    narrowed,
    networks,
    resolve_network,
    resolve_recorded,
    spec_of,
)
from datastill.models.wrapped import Wrapped
from datastill.models.zoo import MLP, VGG11, AlexNet, ConvNet, DoublingConvNet, LeNet

__all__ = [
    "MLP",
    "VGG11",
    "AlexNet",
    "ConvNet",
    "DoublingConvNet",
    "LeNet",
    "Network",
    "NetworkFactory",
    "ResNet18",
    "ResNet18AP",
    "Wrapped",
    "couples_samples",
    "default_options",
    "functional",
    "is_built_in",
    "narrowed",
    "networks",
    "resolve_network",
    "resolve_recorded",
    "spec_of",
]
