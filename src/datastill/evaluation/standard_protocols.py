"""Protocols that train a network on the images and labels of a set, as papers have them."""

from __future__ import annotations

from dataclasses import replace

from datastill.evaluation.protocols import Protocol


def _dc(name: str, summary: str, epochs: int, augment: str) -> Protocol:
    """The published loop: epochs + 1 passes, one drop after pass index epochs // 2 + 1."""
    return Protocol(name, summary, passes=epochs + 1, drop_after=epochs // 2 + 1, augment=augment)


def _idc(name: str, summary: str, epochs: int) -> Protocol:
    """IDC's (Kim et al., ICML 2022, arXiv:2205.14959): lr falls to a fifth after 2/3 and after 5/6 of the passes."""
    return Protocol(
        name,
        summary,
        passes=epochs,
        drops=((2 * epochs // 3 - 1, 0.2), (5 * epochs // 6 - 1, 0.2)),
        forget_momentum=False,
        augment="auto",
        augment_mode="composite",
        cutmix=0.5,
        batch=64,
    )


def _mtt(name: str, summary: str, passes: int, drop_after: int) -> Protocol:
    """MTT's (Cazenavette et al., CVPR 2022, arXiv:2203.11932): the DC loop at the rate that the set learned."""
    return Protocol(name, summary, passes=passes, drop_after=drop_after, augment="auto", learned_lr=True)


def _soft(name: str, summary: str, passes: int, recipe: str, lr: float, batch: int) -> Protocol:
    """Training on a teacher's labels."""
    return Protocol(name, summary, passes=passes, soft=recipe, lr=lr, batch=batch)


PROTOCOLS = (
    _dc("dc-v1", "the DC protocol: 301 passes, no augmentation", 300, "none"),
    _dc("dc-v1-dsa", "the DC protocol with DSA: 1001 passes", 1000, "auto"),
    Protocol(
        "dsa-quick-v1",
        "100 passes with DSA, else as dc-v1-dsa",
        passes=100,
        drop_after=51,
        augment="auto",
    ),
    _mtt("mtt-v1", "MTT's: as dc-v1-dsa, at the learning rate that the set learned", 1001, 501),
    _mtt("mtt-quick-v1", "100 passes, else as mtt-v1", 100, 51),
    _idc("idc-v1", "IDC's: 1000 passes, several operations per image and CutMix, batch 64", 1000),
    _idc("idc-quick-v1", "100 passes, else as idc-v1", 100),
    replace(
        _idc("idc-v1-no-cutmix", "IDC's for MNIST with tiles: as idc-v1, color and crop, no CutMix", 1000),
        augment="color_crop",
        cutmix=0.0,
    ),
    _soft("soft-quick-v1", "a teacher's labels: 100 passes, batch 25, crops and CutMix", 100, "small", 2e-3, 25),
    _soft("sre2l-cifar-v1", "SRe2L's for CIFAR: a teacher's labels, 400 passes, MixUp", 400, "sre2l_cifar", 1e-3, 128),
    _soft(
        "sre2l-imagenet-v1",
        "SRe2L's for ImageNet: a teacher's labels, 300 passes, CutMix",
        300,
        "sre2l_imagenet",
        1e-3,
        1024,
    ),
    _soft("dwa-imagenet-v1", "DWA's for ImageNet: as SRe2L's, batch 128", 300, "dwa_imagenet", 1e-3, 128),
    _soft("tiny-sgd-v1", "DWA's for Tiny-ImageNet: a teacher's labels, 200 passes, SGD", 200, "tiny_sgd", 0.2, 64),
    _soft("rded-v1", "RDED's: a teacher's labels, 300 passes, shuffled patches, batch 50", 300, "rded", 1e-3, 50),
    _soft("rd3-v1", "RD3's, one for all sets: a teacher's labels, 400 passes, Adam, batch 50", 400, "rd3", 1e-3, 50),
    _soft(
        "g-vbsm-cifar-v1",
        "G-VBSM's for CIFAR: logits of all teachers, 1000 passes, CutMix",
        1000,
        "gvbsm",
        1e-3,
        100,
    ),
    _soft("edc-imagenet-v1", "EDC's for ImageNet: logits of all teachers, 300 passes, averaged", 300, "edc", 1e-3, 100),
    _soft("sre2l-plus-v1", "SRe2L++'s: a teacher by batch, 300 passes, batch 16", 300, "sre2l_plus", 1e-3, 16),
    Protocol(
        "ceiling-v1",
        "the whole real set: 30 passes, batch 128",
        passes=30,
        drop_after=15,
        augment="auto",
        batch=128,
    ),
)
