"""The zoo: sizes, features, taps and norms, against hand-computed numbers and the definition."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from datastill.core.errors import InputError
from datastill.core.rng import isolated
from datastill.models import (
    MLP,
    VGG11,
    AlexNet,
    ConvNet,
    DoublingConvNet,
    LeNet,
    Network,
    ResNet18,
    ResNet18AP,
    couples_samples,
    functional,
)

ZOO = [ConvNet, DoublingConvNet, MLP, LeNet, AlexNet, VGG11, ResNet18, ResNet18AP]


def make(kind: type, *args, seed: int = 0, **options) -> Network:
    with isolated(seed):
        return kind(*args, **options)


def images(n: int, channels: int, size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(seed))


def hooks_on(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        (ConvNet, 320_010),
        (DoublingConvNet, 3_584 + 256 + 256 * 1_153 + 512 + 512 * 2_305 + 10 * 8_193),
        (MLP, 411_146),
        (LeNet, 62_006),
        (AlexNet, 9_728 + 614_592 + 442_624 + 442_560 + 331_968 + 30_730),
        (VGG11, 1_792 + 73_856 + 295_168 + 590_080 + 1_180_160 + 3 * 2_359_808 + 2 * 2_752 + 5_130),
        (ResNet18, 11_173_962),
        (ResNet18AP, 11_173_962 - 5_130 + 512 * 16 * 10 + 10),
    ],
)
def test_parameter_counts(kind, count):
    assert sum(p.numel() for p in make(kind, 3, 10, (32, 32)).parameters()) == count


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"norm": "none"}, 320_010 - 768),
        ({"norm": "layer"}, 320_010 - 768 + 2 * 128 * (32 * 32 + 16 * 16 + 8 * 8)),
        ({"pool": "none"}, 320_010 + 10 * 128 * (32 * 32 - 4 * 4)),
        ({"width": 32, "depth": 2}, 32 * 27 + 32 + 64 + 32 * 288 + 32 + 64 + 10 * 32 * 64 + 10),
    ],
)
def test_convnet_variants(options, count):
    assert sum(p.numel() for p in make(ConvNet, 3, 10, (32, 32), **options).parameters()) == count


def test_doubling_convnet_is_normalized_before_all_convolutions_but_the_first():
    net = make(DoublingConvNet, 1, 10, (28, 28), width=4)
    kinds = [type(m).__name__ for m in net.body]
    assert kinds == ["Conv2d", "ReLU", "AvgPool2", *["BatchNorm2d", "Conv2d", "ReLU", "AvgPool2"] * 2]
    assert [m.out_channels for m in net.body if isinstance(m, nn.Conv2d)] == [4, 8, 16]
    assert net.embed_size == 16 * 4 * 4


def test_convnet_layers_are_the_published_ones():
    net = make(ConvNet, 1, 10, (28, 28), activation="leaky", norm="group", pool="max")
    kinds = [type(m).__name__ for m in net.body]
    assert kinds == ["Conv2d", "GroupNorm", "LeakyReLU", "MaxPool2d"] * 3
    assert [m.padding for m in net.body if isinstance(m, nn.Conv2d)] == [(3, 3), (1, 1), (1, 1)]
    assert net.body[1].num_groups == 4
    assert net.body[2].negative_slope == 0.01
    assert make(ConvNet, 1, 10, (28, 28)).body[1].num_groups == 128
    assert net.embed_size == 2048  # padding 3 turns 28 pixels into 32


@pytest.mark.parametrize("kind", ZOO)
@pytest.mark.parametrize(
    ("channels", "size"), [(1, (28, 28)), (3, (32, 32)), (3, (40, 40)), (1, (36, 44)), (3, (48, 32))]
)
def test_embed_and_classify_are_forward(kind, channels, size):
    net = make(kind, channels, 7, size)
    x = images(2, channels, size)
    with torch.no_grad():
        features = net.embed(x)
        logits = net(x)
        assert features.shape == (2, net.embed_size)
        assert logits.shape == (2, 7)
        assert torch.equal(net.classify(features), logits)


@pytest.mark.parametrize("kind", [ConvNet, AlexNet, VGG11, ResNet18, ResNet18AP])
@pytest.mark.parametrize("norm", ["none", "batch", "layer", "instance", "group"])
def test_every_norm_fits_every_network_that_has_norms(kind, norm):
    net = make(kind, 3, 5, (36, 44), norm=norm)
    with torch.no_grad():
        assert torch.isfinite(net(images(2, 3, (36, 44)))).all()
    assert couples_samples(net) == (norm == "batch")


@pytest.mark.parametrize("kind", [ConvNet, MLP, ResNet18AP])
@pytest.mark.parametrize("channels", [1, 3])
def test_eight_pixels(kind, channels):
    options = {"norm": "batch"} if kind is ResNet18AP else {}
    with torch.no_grad():
        assert make(kind, channels, 4, (8, 8), **options)(images(2, channels, (8, 8))).shape == (2, 4)


def test_resnet18_shrinks_its_last_pool_below_25_pixels():
    with torch.no_grad():
        assert make(ResNet18, 3, 4, (8, 8), norm="batch")(images(2, 3, (8, 8))).shape == (2, 4)
        assert make(ResNet18, 3, 4, (32, 64)).embed_size == 1024


@pytest.mark.parametrize(
    "build",
    [
        lambda: ConvNet(3, 10, (8, 8), depth=4, norm="none"),
        lambda: ConvNet(3, 10, (32, 4)),
        lambda: VGG11(3, 10, (28, 28)),
        lambda: LeNet(3, 10, (8, 8)),
        lambda: AlexNet(3, 10, (7, 7)),
        lambda: ResNet18(3, 10, (8, 8)),  # instance norm over one pixel
    ],
)
def test_too_small_an_image_is_one_sentence(build):
    with isolated(0), pytest.raises(InputError, match="too small"):
        build()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"norm": "bach"}, "Did you mean 'batch'"),
        ({"pool": "average"}, "pool"),
        ({"activation": "rellu"}, "Did you mean 'relu'"),
        ({"width": 0}, "width"),
        ({"depth": 1.5}, "depth"),
        ({"padding": -1}, "padding"),
        ({"norm": "group", "width": 6}, "4 divides"),
    ],
)
def test_wrong_options(options, match):
    with isolated(0), pytest.raises(InputError, match=match):
        ConvNet(3, 10, (32, 32), **options)


@pytest.mark.parametrize(
    ("norm", "couples"),
    [("none", False), ("instance", False), ("layer", False), ("group", False), ("batch", True)],
)
def test_coupling_is_what_the_forward_shows(norm, couples):
    net = make(ConvNet, 3, 10, (16, 16), width=8, norm=norm)
    x = images(5, 3, (16, 16))
    with torch.no_grad():
        together = net(x)
        apart = torch.cat([net(x[i : i + 1]) for i in range(5)])
    assert (not torch.allclose(together, apart, atol=1e-5)) == couples
    assert couples_samples(net) == couples
    assert not couples_samples(net.eval())


def test_batch_norm_without_running_statistics_couples_in_evaluation_mode():
    net = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)).eval()
    assert couples_samples(net)
    assert not couples_samples(nn.InstanceNorm2d(3))


@pytest.mark.parametrize("kind", ZOO)
def test_taps(kind):
    net = make(kind, 3, 5, (32, 32))
    x = images(2, 3, (32, 32))
    names = net.tap_names()
    assert names[-2:] == ("flat", "logits")
    assert names[0] == "relu1"
    with torch.no_grad():
        taps = net.taps(x, reversed(names))
        assert list(taps) == list(reversed(names))
        assert torch.equal(taps["flat"], net.embed(x))
        assert torch.equal(taps["logits"], net(x))
    assert all((taps[n] >= 0).all() for n in names if n.startswith("relu"))
    assert hooks_on(net) == 0


def test_convnet_taps_are_the_named_stages():
    net = make(ConvNet, 3, 5, (32, 32), width=8)
    x = images(2, 3, (32, 32))
    taps = net.taps(x, ["relu2", "pool2", "pool3"])
    assert list(net.tap_names()) == ["relu1", "pool1", "relu2", "pool2", "relu3", "pool3", "flat", "logits"]
    assert taps["relu2"].shape == (2, 8, 16, 16)
    # to rounding: our pool adds rows first, torch windows
    assert torch.allclose(taps["pool2"], nn.functional.avg_pool2d(taps["relu2"], 2), atol=1e-6)
    assert torch.equal(taps["pool3"].flatten(1), net.embed(x))
    assert "pool1" not in make(ConvNet, 3, 5, (32, 32), width=8, pool="none").tap_names()


def test_taps_stop_at_the_last_one_asked_for():
    net = make(ConvNet, 3, 5, (32, 32), width=8)
    net.body.conv3.weight.data.fill_(float("nan"))
    net.body.conv3.forward = None  # would raise if it ran
    assert torch.isfinite(net.taps(images(1, 3, (32, 32)), ["pool2"])["pool2"]).all()
    assert net.taps(images(1, 3, (32, 32)), []) == {}


def test_unknown_tap():
    with pytest.raises(InputError, match="Did you mean 'relu1'"):
        make(ConvNet, 3, 5, (16, 16), width=8, depth=1).taps(images(1, 3, (16, 16)), ["rellu1"])


def test_functional_reaches_every_method_and_leaves_the_weights():
    net, other = (make(ConvNet, 3, 5, (16, 16), width=8, seed=s) for s in (1, 2))
    x = images(2, 3, (16, 16))
    weights = dict(other.named_parameters())
    before = [p.clone() for p in net.parameters()]
    assert torch.equal(functional(net, weights, x), other(x))
    assert torch.equal(functional(net, weights, x, method="embed"), other.embed(x))
    assert torch.equal(
        functional(net, weights, x, ["relu1"], method="taps")["relu1"], other.taps(x, ["relu1"])["relu1"]
    )
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters()))


@pytest.mark.parametrize("kind", ZOO)
def test_nothing_is_in_place(kind):
    assert not any(getattr(m, "inplace", False) for m in make(kind, 3, 5, (32, 32)).modules())


def test_average_pool_residual_block_by_hand():
    """The pool stands after the first activation, and in the shortcut before the norm."""
    net = make(ResNet18AP, 3, 5, (16, 16), norm="group")
    block = net.body.block3
    x = images(2, 64, (16, 16))
    pool = nn.functional.avg_pool2d
    y = block.norm2(block.conv2(pool(block.norm1(block.conv1(x)).relu(), 2)))
    expected = (y + block.shortcut.norm(pool(block.shortcut.conv(x), 2))).relu()
    assert torch.allclose(block(x), expected, atol=1e-5)  # two ways of averaging, to rounding
    assert block.conv1.stride == (1, 1)
    assert make(ResNet18, 3, 5, (16, 16)).body.block3.conv1.stride == (2, 2)


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (5, 3)])
def test_avg_pool_is_that_of_torch(size: tuple[int, int]) -> None:
    from datastill.models.layers import AvgPool2

    x = torch.arange(2.0 * 3 * size[0] * size[1]).view(2, 3, *size).sin()
    assert torch.allclose(AvgPool2()(x), torch.nn.functional.avg_pool2d(x, 2), atol=1e-6)
