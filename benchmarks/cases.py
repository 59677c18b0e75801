"""What is measured: one function per case and side, each call of which does the same work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import naive
import torch

SHAPES = {"cifar10": (3, 32, 50.7e6), "fashion_mnist": (1, 28, 48.4e6)}
PASSES = 30  #: training passes timed in an evaluation case; the protocol has 301
TEST_IMAGES = 10_000
INNER = 10  #: passes of the inner loop timed; the published loop makes 50 between two updates at ipc 10
ALL = "color_crop_cutout_flip_scale_rotate"
RESNET_MACS = 555.4e6  #: of ResNet-18 with the stem for small images, one image of 3 x 32 x 32
NARROW_MACS = 13.7e6  #: of a ConvNet of width 64, one image of 3 x 32 x 32
BLOCK = 100  #: images of a block in recovery
REGRESSED, KERNEL = 1_000, 2_000  #: real images of a step of FRePo, and of KIP
NET_IMAGES = 2_000  #: real images of IDC's network training per step


def names(kinds: list[str]) -> list[str]:
    """All cases of the given kinds."""
    every = [f"dm {data} ipc {ipc}" for data in SHAPES for ipc in (1, 10, 50)]
    every += [f"eval {data} ipc {ipc}" for data in SHAPES for ipc in (1, 10)]
    every += ["augment cifar10 siamese", "augment cifar10 independent"]
    every += [f"{kind} {data} ipc {ipc}" for kind in ("dc", "dsa") for data in SHAPES for ipc in (1, 10)]
    every += [f"{kind} {data} ipc 10" for kind in ("inner", "idc") for data in SHAPES]
    every += ["recover cifar10 sre2l", "recover cifar10 dwa", "stages cifar10 ipc 10"]
    every += [f"{kind} cifar10 ipc {ipc}" for kind in ("frepo", "kip") for ipc in (1, 10)]
    return [n for n in every if n.split()[0] in kinds]


def sides(name: str) -> tuple[str, ...]:
    """Which sides a case has."""
    both = ("literal", "literal, tuned", "datastill")
    return both if name.startswith(("augment", "kip")) else (*both, "datastill bf16")


def gflop(name: str) -> float:
    """Floating-point work of one call, counting two per multiply-accumulate; 0 where it does not count."""
    kind, data, *rest = name.split()
    macs = SHAPES[data][2]
    if kind == "recover":
        return 2e-9 * RESNET_MACS * 2 * BLOCK  # forward, and backward to the pixels
    if kind == "stages":
        return 2e-9 * NARROW_MACS * 3 * 4 * 10 * int(rest[1])  # of the synthetic side, which is all that ours has
    if kind == "frepo":  # real images; support with its mirrored copies, forth and back; the network's update
        return 2e-9 * macs * (REGRESSED + 3 * 20 * int(rest[1]) + 3 * 10 * int(rest[1]))
    if kind == "kip":  # inner products and their gradient; roots and angles do not count
        return 10 * 2e-9 * 3 * KERNEL * 10 * int(rest[1]) * SHAPES[data][0] * SHAPES[data][1] ** 2
    if kind == "dm":
        return 2e-9 * macs * (2560 + 3 * 10 * int(rest[1]))
    if kind == "eval":
        return 2e-9 * macs * (PASSES * 3 * 10 * int(rest[1]) + TEST_IMAGES)
    ipc = int(rest[1]) if rest[0] == "ipc" else 0
    if kind in ("dc", "dsa"):
        return 2e-9 * macs * (3 * 2560 + 8 * 10 * ipc)
    if kind == "inner":
        return 2e-9 * macs * 3 * INNER * 10 * ipc
    if kind == "idc":
        return 2e-9 * macs * (3 * 640 + 8 * 10 * min(128, 4 * ipc) + 3 * NET_IMAGES)
    return 0.0


def images(data: str, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of the right shape, ten classes in turn. Values do not matter to time."""
    channels, size, _ = SHAPES[data]
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, channels, size, size, generator=generator), torch.arange(n) % 10


def build(name: str, side: str, device: str) -> Callable[[], object]:
    """The function that does one unit of a case's work."""
    kind, data, *rest = name.split()
    makers = {
        "dm": dm,
        "eval": evaluation,
        "augment": augmentation,
        "inner": inner,
        "idc": idc,
        "recover": recover,
        "stages": stages,
        "frepo": frepo,
        "kip": kip,
    }
    if kind in ("dc", "dsa"):
        return gradient_match(data, [kind, *rest], side, device)
    return makers[kind](data, rest, side, device)


def dm(data: str, rest: list[str], side: str, device: str) -> Callable[[], object]:
    """One image update of all ten classes with 256 real images each."""
    ipc = int(rest[1])
    x, y = images(data, 10_000)
    if side.startswith("literal"):
        return naive.Dm(x, y, ipc, 256).step
    return stepping("dm", data, side, device, ipc=ipc, augment=ALL)[0]


def stages(data: str, rest: list[str], side: str, device: str) -> Callable[[], object]:
    """One image update on a narrow trained network; the published loops take 128 fresh real images of each class."""
    ipc = int(rest[1])
    if side.startswith("literal"):
        return naive.Stage(*images(data, 10_000), ipc, 128, 2, 64).step
    short = {"expert_count": 1, "expert_updates": 12, "statistics_images": 16, "factor": 2}
    return stepping("stages", data, side, device, ipc=ipc, augment=ALL, **short)[0]


def frepo(data: str, rest: list[str], side: str, device: str) -> Callable[[], object]:
    """One image update on features of a network, and that network's; ours draws out of a pool of ten."""
    ipc = int(rest[1])
    if side.startswith("literal"):
        return naive.Frepo(*images(data, 10_000), ipc, REGRESSED, mirror=True).step
    return stepping("frepo", data, side, device, ipc=ipc, real_batch=REGRESSED // 10, mirror="on")[0]


def kip(data: str, rest: list[str], side: str, device: str) -> Callable[[], object]:
    """Ten image updates by the kernel of a dense network of infinite width."""
    ipc = int(rest[1])
    if side.startswith("literal"):
        step: Callable[[], object] = naive.Kip(*images(data, 10_000), ipc, KERNEL).step
    else:
        step = stepping("kip", data, side, device, ipc=ipc, real_batch=KERNEL // 10)[0]
    return lambda: [step() for _ in range(10)]


def evaluation(data: str, rest: list[str], side: str, device: str) -> Callable[[], object]:
    """One network: 30 training passes on the synthetic set and one pass over 10,000 test images."""
    ipc = int(rest[1])
    channels, size, _ = SHAPES[data]
    x, y = images(data, 10 * ipc)
    test_x, test_y = images(data, TEST_IMAGES)
    if side.startswith("literal"):

        def literal() -> None:
            network = naive.PlainConvNet(channels, 10, size)
            naive.train_passes(network, x, y, PASSES, augment=False)
            naive.test_pass(network, test_x, test_y)

        return literal
    from datastill.core.precision import casting
    from datastill.core.rng import Rng
    from datastill.models import resolve_network
    from datastill.training.hard import Schedule, predict, train

    factory = resolve_network(None, channels=channels, classes=10, size=(size, size))
    where = torch.device(device)

    def ours() -> None:
        with casting(where, "bf16" if side.endswith("bf16") else "float32"):
            network = factory(0).to(where)
            train(network, x, y, Schedule(passes=PASSES), Rng(0), device=where)
            predict(network, test_x, device=where)

    return ours


def stepping(
    method: str, data: str, side: str, device: str, prepared: dict[str, Any] | None = None, **hyper: Any
) -> tuple[Callable[[], None], Any]:
    """One step of a method in its published setting, and what runs it."""
    from datastill import load_real
    from datastill.core.loop import one_step
    from datastill.core.plan import Block
    from datastill.core.running import start
    from datastill.core.runtime import Runtime
    from datastill.distillation.job import prepare_job
    from datastill.distillation.preparation import prepare

    x, y = images(data, 10_000)
    real = load_real((x.sigmoid(), y), space="raw")
    precision = "bf16" if side.endswith("bf16") else "float32"
    job = prepare_job(method, real, steps=10**6, recipe="paper", runtime=Runtime.of(device, precision), **hyper)
    plan = job.method.build(job.task)
    block: Block = next(plan.partition.blocks(job.task.labels))
    running = start(plan, job.task, block, (), prepare(plan, job.task)[0] if prepared is None else prepared)

    def step() -> None:
        one_step(running.context, running.steppers, running.guard)
        running.context.step += 1

    return step, running


def gradient_match(data: str, rest: list[str], side: str, device: str) -> Callable[[], object]:
    """One image update of DC or DSA, 256 real images per class, without the inner loop."""
    kind, ipc = rest[0], int(rest[2])
    if side.startswith("literal"):
        return naive.Dc(*images(data, 10_000), ipc, 256, augment=kind == "dsa").step
    augment = ALL if kind == "dsa" else "none"
    return stepping(kind, data, side, device, ipc=ipc, outer=1, inner=1, augment=augment)[0]


def inner(data: str, rest: list[str], side: str, device: str) -> Callable[[], object]:
    """Passes of DC's network over the synthetic set between two image updates."""
    ipc = int(rest[1])
    if side.startswith("literal"):
        loop = naive.Dc(*images(data, 10_000), ipc, 256, augment=False)
        return lambda: loop.inner(INNER)
    _, running = stepping("dc", data, side, device, ipc=ipc, outer=10, inner=INNER, real_batch=1)
    context = running.context
    context.plan.surrogates.draw(context)
    context.step = 1
    return lambda: context.plan.surrogates.advance(context)


def idc(data: str, rest: list[str], side: str, device: str) -> Callable[[], object]:
    """One inner step of IDC with factor 2: 64 real images per class, then 2,000 images of network training."""
    ipc = int(rest[1])
    if side.startswith("literal"):
        return naive.Idc(*images(data, 10_000), ipc, 64, 2, NET_IMAGES).step
    distance = "l1" if data == "fashion_mnist" else "mse"
    step, _ = stepping("idc", data, side, device, ipc=ipc, distance=distance, net_images=NET_IMAGES, augment=ALL)
    step()  # the first draws a network; the others go on with it
    return step


def recover(data: str, rest: list[str], side: str, device: str) -> Callable[[], object]:
    """One update of a block of 100 images from a ResNet-18, shifts only, as SRe2L or as DWA has it."""
    kind = rest[0]
    if side.startswith("literal"):
        return naive.Recover(BLOCK, weight_gradients=kind == "dwa").step
    from datastill.core.space import normalized
    from datastill.models import resolve_network
    from datastill.surrogates.teachers import Teacher

    network = resolve_network("resnet18:norm=batch", channels=3, classes=10, size=(32, 32))(0)
    space = normalized((0.5,) * 3, (0.25,) * 3)
    teacher = Teacher(network, space, tuple(str(c) for c in range(10)), 3, (32, 32), "resnet18:norm=batch")
    prepared = {"teacher": {"trial": torch.tensor(1.0)}}
    hyper = {"teacher": teacher, "ipc": BLOCK // 10, "block_group": BLOCK // 10, "network": "resnet18:norm=batch"}
    step, _ = stepping(kind, data, side, device, prepared, r_bn=0.01, **hyper)
    step()  # the first step of DWA directs its weights
    return step


def augmentation(data: str, rest: list[str], side: str, device: str) -> Callable[[], object]:
    """Augmentation of 2560 images: siamese per class, or with parameters per image; ten draws."""
    channels, size, _ = SHAPES[data]
    x, y = images(data, 2560)
    y = y.sort().values
    shared = rest[0] == "siamese"
    generator = torch.Generator().manual_seed(0)
    if side.startswith("literal"):

        def literal() -> None:
            for draw in range(10):
                for c in range(10):
                    part = x[y == c]
                    if shared:
                        naive.siamese(part, 10 * draw + c)
                    else:
                        naive.independent(part, generator)

        return literal
    from datastill.augment import Dsa

    augment = Dsa("color_crop_cutout_flip_scale_rotate")
    where = torch.device(device)
    moved, rows = x.to(where), y.to(where)

    def ours() -> None:
        for _ in range(10):
            if shared:
                record = augment.draw(10, (channels, size, size), generator)
                augment.apply(moved, record, rows=rows)
            else:
                for c in range(10):
                    record = augment.draw(256, (channels, size, size), generator, one_op=True)
                    augment.apply(moved[256 * c : 256 * (c + 1)], record)

    return ours


def ceiling(device: str, threads: int) -> dict[str, float]:
    """GFLOP/s of the best of a few convolutions, in float32 and bfloat16."""
    from datastill.core.allocator import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(threads)
    best = {"float32": 0.0, "bf16": 0.0}
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        for batch, side in ((16, 16), (32, 16), (16, 32), (64, 8)):
            conv = torch.nn.Conv2d(128, 128, 3, padding=1).to(device, dtype)
            x = torch.randn(batch, 128, side, side, device=device, dtype=dtype)
            with torch.no_grad():
                conv(x)
                for _ in range(5):
                    if device == "cuda":
                        torch.cuda.synchronize()
                    started = time.perf_counter()
                    for _ in range(10):
                        conv(x)
                    if device == "cuda":
                        torch.cuda.synchronize()
                    seconds = (time.perf_counter() - started) / 10
                    best[name] = max(best[name], 2e-9 * batch * 128 * 128 * 9 * side * side / seconds)
    return best
