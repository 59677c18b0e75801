"""Teachers label without being changed: running statistics or those of the batch, one teacher or several."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from datastill.core.errors import InputError
from datastill.core.rng import isolated
from datastill.labels.labeler import Labeler


def teacher(seed: int = 0, classes: int = 5, momentum: float | None = 0.1) -> nn.Module:
    with isolated(seed):
        network = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6, momentum=momentum),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(24, 8),
            nn.BatchNorm1d(8),
            nn.Linear(8, classes),
        )
        network(torch.randn(20, 3, 6, 6))  # running statistics that are not 0 and 1
    return network


def images(n: int = 7) -> Tensor:
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(3)) * 2 + 1


def snapshot(network: nn.Module) -> tuple[dict[str, Tensor], list[bool], int]:
    state = {name: t.clone() for name, t in network.state_dict().items()}
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())
    return state, [m.training for m in network.modules()], hooks


def same(a: tuple[dict[str, Tensor], list[bool], int], b: tuple[dict[str, Tensor], list[bool], int]) -> bool:
    return a[1:] == b[1:] and all(torch.equal(t, b[0][name]) for name, t in a[0].items())


@pytest.mark.parametrize("mode", ["eval", "batch"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_call_leaves_the_teacher_as_it_was(mode: str, training: bool, momentum: float | None) -> None:
    network = teacher(momentum=momentum).train(training)
    network[0].eval()  # an odd one out
    network[1].register_forward_hook(lambda module, inputs, output: None)
    before = snapshot(network)
    logits = Labeler([network], mode=mode)(images())
    assert same(before, snapshot(network))
    assert logits.shape == (7, 5)
    assert logits.dtype == torch.float32
    assert not logits.requires_grad
    assert not logits.is_inference()


def test_evaluation_labels_are_those_of_the_network_in_evaluation() -> None:
    network = teacher()
    expected = copy.deepcopy(network).eval()(images())
    assert torch.allclose(Labeler([network.train()])(images()), expected, atol=1e-6)


def test_batch_labels_are_those_of_batch_norm_in_train_mode_and_of_nothing_else_in_it() -> None:
    network = teacher().eval()
    by_hand = copy.deepcopy(network)
    for module in by_hand.modules():
        module.training = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    labeler = Labeler([network], mode="batch")
    first = labeler(images())
    assert torch.equal(first, by_hand(images()))
    assert torch.equal(first, labeler(images()))  # no drop-out, no drift
    assert (first - Labeler([network])(images())).abs().max() > 0.05
    assert (first[:3] - labeler(images()[:3])).abs().max() > 0.05  # labels belong to their batch


class _Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("broken")


@pytest.mark.parametrize("mode", ["eval", "batch"])
def test_an_exception_leaves_the_teacher_as_it_was(mode: str) -> None:
    network = nn.Sequential(*teacher()[:3], _Broken())
    network[1].eval()
    before = snapshot(network)
    with pytest.raises(RuntimeError, match="broken"):
        Labeler([network], mode=mode)(images())
    assert same(before, snapshot(network))


def test_images_that_are_not_numbers_leave_running_statistics_alone() -> None:
    network = teacher()
    before = snapshot(network)
    x = images()
    x[0, 0, 0, 0] = float("nan")
    assert Labeler([network], mode="batch")(x).isnan().any()
    assert same(before, snapshot(network))


def test_networks_without_batch_norm_label_alike_in_both_modes() -> None:
    with isolated(0):
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 5))
    assert torch.allclose(Labeler([network], mode="batch")(images()), Labeler([network])(images()), atol=1e-6)


def test_the_mean_is_of_logits() -> None:
    networks = [teacher(seed) for seed in range(3)]
    expected = torch.stack([Labeler([network])(images()) for network in networks]).mean(0)
    assert torch.allclose(Labeler(networks, combine="mean")(images()), expected, atol=1e-6)


def test_balanced_teachers_count_alike() -> None:
    a, b = teacher(0), teacher(1)
    louder = copy.deepcopy(b)
    with torch.no_grad():
        louder[8].weight *= 10
        louder[8].bias *= 10
    balanced = Labeler([a, b], combine="norm_balanced")(images())
    with_louder = Labeler([a, louder], combine="norm_balanced")(images())
    za, zb = Labeler([a])(images()), Labeler([b])(images())
    norm = (za.norm() + zb.norm()) / 2
    assert torch.allclose(balanced, (za / za.norm() + zb / zb.norm()) / 2 * norm, atol=1e-5)
    assert torch.allclose(with_louder / with_louder.norm(), balanced / balanced.norm(), atol=1e-5)
    plain = Labeler([a, louder], combine="mean")(images())
    assert not torch.allclose(plain / plain.norm(), balanced / balanced.norm(), atol=1e-2)


def test_a_teacher_that_says_nothing_is_no_division_by_zero() -> None:
    mute = teacher(1)
    with torch.no_grad():
        mute[8].weight.zero_()
        mute[8].bias.zero_()
    logits = Labeler([teacher(0), mute], combine="norm_balanced")(images())
    assert torch.isfinite(logits).all()
    assert logits.abs().max() > 0


def test_columns_pick_classes_in_their_order() -> None:
    network = teacher()
    assert torch.equal(Labeler([network], columns=[3, 0])(images()), Labeler([network])(images())[:, [3, 0]])
    with pytest.raises(InputError, match="positions below 5"):
        Labeler([network], columns=[5])(images())


def test_double_precision_teachers_label_in_single_precision() -> None:
    assert Labeler([teacher().double()])(images().double()).dtype == torch.float32


def test_a_description_knows_the_weights() -> None:
    network = teacher()
    first = Labeler([network], mode="batch").describe()
    assert first == Labeler([copy.deepcopy(network)], mode="batch").describe()
    assert first["mode"] == "batch"
    with torch.no_grad():
        network[1].running_mean[0] += 1e-3
    assert Labeler([network]).describe()["teachers"] != first["teachers"]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="Did you mean 'batch'"):
        Labeler([teacher()], mode="batches")
    with pytest.raises(InputError, match="Unknown combination"):
        Labeler([teacher()], combine="median")
    with pytest.raises(InputError, match="at least one"):
        Labeler([])
    with pytest.raises(InputError, match="2 teachers"):
        Labeler([teacher(), teacher()])
    with pytest.raises(InputError, match=r"\[5, 4\] logits"):
        Labeler([teacher(), teacher(classes=4)], combine="mean")(images())
