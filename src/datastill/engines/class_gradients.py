"""Weight gradients of one network for every class of a batch: what gradient matching compares.

    g_k = d/dtheta  sum_{i in k} w_i CE(f_theta(x_i), y_i) / sum_{i in k} w_i      (Zhao et al., arXiv:2006.05929)

Three engines give the same numbers where no layer couples samples: one class after the other ("loop"), `vmap` of the
gradient ("vmap"), and one pass for all classes with a formula per layer ("joint").
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from datastill.core.errors import InputError, nearest
from datastill.engines.class_gradients_batch import (
    COUPLED,
    ClassBatch,
    ClassGradients,
    Unsupported,
    sort_by_class,
    zero_gradients,
)
from datastill.engines.class_gradients_engines import chunked_gradients, loop_gradients, vmap_gradients
from datastill.engines.class_gradients_joint import joint_gradients
from datastill.models import couples_samples

Engine = Callable[[nn.Module, ClassBatch, Sequence[str], bool], ClassGradients]

ENGINES: dict[str, Engine] = {"loop": loop_gradients, "vmap": vmap_gradients, "joint": joint_gradients}

#: Images of 50M multiply-accumulates in twice differentiable passes at once, on a CPU and elsewhere.
_GRAPH_IMAGES = {"cpu": 16, "other": 256}
#: Bytes for the class gradients of both sides and what their distance keeps, on a CPU and elsewhere.
_GRADIENT_BYTES = {"cpu": 2**30, "other": 2**32}
_GRADIENT_COPIES = 6


def class_gradients(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    classes: Sequence[int] | Tensor,
    *,
    weight: Tensor | None = None,
    create_graph: bool = False,
    engine: str = "auto",
    chunk: int | None = None,
    names: Sequence[str] | None = None,
    compiled: bool = False,
) -> ClassGradients:
    """The gradient of each class's weighted mean cross-entropy in the network's weights.

    "auto" is "loop" for networks that couple samples. For others it follows from the device and sizes: on a CPU,
    with `create_graph`, "joint" where the batch holds several classes and "loop" for one; without it, class by class
    through `weight_gradients`, but "joint" where two classes fit into one chunk. On other devices, and where "joint"
    is the choice on a CPU, the first of "joint", "vmap" (not on a CPU) and "loop" that can take the network. The rule
    was measured on a CPU only; elsewhere nothing was run.

    Args:
        network: maps (n, c, h, w) to logits (n, C). Weights, buffers, `requires_grad` and `.grad` stay as they are.
        x: images, (n, c, h, w).
        y: class positions, (n,) int64: the class of each image and the target of its cross-entropy.
        classes: the K class positions wanted, each once; images of other classes are ignored.
        weight: weight per image (n,), not negative, or None for equal weights.
        create_graph: whether the result can be differentiated with respect to x.
        engine: "auto", or one of the three by name.
        chunk: images per pass without `create_graph`, None for no limit. Ignored where it could change the result:
            with `create_graph`, and where samples are coupled.
        names: the parameters wanted, by name; None is all. No others are computed.
        compiled: with "auto" and without `create_graph`, run `weight_gradients`, as compiled code.

    Returns:
        (K, *parameter.shape) by parameter name; zero for classes without images.

    Raises:
        InputError: labels, classes, weights, names or engine do not fit, or the engine cannot take the network.
    """
    names = _wanted(network, names)
    if engine != "auto" and engine not in ENGINES:
        raise InputError(f"There is no engine {engine!r}. {nearest(engine, ('auto', *ENGINES))}")
    coupled = couples_samples(network)
    if coupled and engine not in ("auto", "loop"):
        raise Unsupported(engine, COUPLED)
    batch = sort_by_class(x, y, classes, weight)
    if not len(batch.y):
        return zero_gradients(network, names, len(batch.counts))
    size = None if coupled or create_graph else chunk
    options = [engine] if engine != "auto" else _options(batch, create_graph, size, compiled, coupled)
    run = partial(_run, network, batch, names, create_graph, size, compiled)
    for option in options[:-1]:
        with contextlib.suppress(Unsupported):
            return run(option)
    return run(options[-1])


def images_at_once(macs: float, device: torch.device) -> int:
    """Images per twice differentiable pass, in inverse proportion to a network's multiply-accumulates per image.

    16 images of the field's usual network (50M) stay near a CPU's cache; 256 take about 3 GB elsewhere.
    """
    usual = _GRAPH_IMAGES["cpu" if device.type == "cpu" else "other"]
    return max(1, min(4096, round(usual * 50e6 / max(1.0, macs))))


def classes_at_once(images: int, macs: float, parameters: int, device: torch.device) -> int:
    """How many classes share one twice differentiable pass, at least one; computed from sizes, never from timing.

    Bounded by the images that `images_at_once` allows, and by 1 GiB (elsewhere 4 GiB) for what is as large as the
    class gradients: both sides, their distance and its gradient.

    Args:
        images: images of the largest class.
        macs: multiply-accumulates of one forward pass of one image.
        parameters: number of the network's weights that are matched.
        device: where the computation runs.
    """
    budget = _GRADIENT_BYTES["cpu" if device.type == "cpu" else "other"]
    by_gradients = budget // (4 * _GRADIENT_COPIES * max(1, parameters))
    return max(1, min(images_at_once(macs, device) // max(1, images), by_gradients))


def _options(batch: ClassBatch, create_graph: bool, chunk: int | None, compiled: bool, coupled: bool) -> list[str]:
    """The engines to try, in this order; "chunks" is `weight_gradients`."""
    if coupled:
        return ["loop"]
    if compiled and not create_graph:
        return ["chunks"]
    if batch.x.device.type != "cpu":
        return ["joint", "vmap", "loop"]
    one_by_one = "loop" if create_graph else "chunks"
    several = sum(count > 0 for count in batch.counts) > 1
    fits = create_graph or chunk is None or 2 * max(batch.counts) <= chunk
    return ["joint", one_by_one] if several and fits else [one_by_one]


def _run(
    network: nn.Module,
    batch: ClassBatch,
    names: Sequence[str],
    create_graph: bool,
    chunk: int | None,
    compiled: bool,
    option: str,
) -> ClassGradients:
    if option == "chunks":
        return chunked_gradients(network, batch, names, chunk, compiled)
    engine = ENGINES[option]
    if create_graph:
        with sdpa_kernel(SDPBackend.MATH):  # the fused attentions have no second derivative
            return engine(network, batch, names, True)
    if chunk is None or len(batch.y) <= chunk:
        return engine(network, batch, names, False)
    total = zero_gradients(network, names, len(batch.counts))
    for first, piece in batch.pieces(chunk):
        for name, rows in engine(network, piece, names, False).items():
            total[name][first : first + len(rows)] += rows
    return total


def _wanted(network: nn.Module, names: Sequence[str] | None) -> list[str]:
    known = [name for name, _ in network.named_parameters()]
    for name in names or ():
        if name not in known:
            raise InputError(f"The network has no parameter {name!r}. {nearest(name, known)}")
    return known if names is None else list(names)
