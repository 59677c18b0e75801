"""Compiled networks for first-order work on a CPU: `torch.compile`, where the run is long enough to pay for it.

Measured (ConvNet of width 128 and depth 3, 32 x 32, one thread): features take 20 % less CPU time in float32 and 40 %
in bf16, weight gradients 8 % and 25 %; compiling takes 22 CPU seconds for each shape, 5 when Inductor finds its cache.
Second-order passes stay as they are, since compiled code has no double backward.

One code object is compiled for each kind of network and each shape, and networks are handed to it as arguments. So
fresh networks of one kind compile nothing, and no kind comes near dynamo's limit of eight versions per code object.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import sysconfig
import types
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datastill.core.errors import InputError, nearest
from datastill.core.registry import NOMINAL_MACS_PER_SECOND

MODES = ("auto", "on", "off")

#: "auto" compiles from this much work on, in seconds at the nominal speed: compiling takes 25 to 50 seconds where
#: nothing is cached, and brings from a twelfth to two fifths of the time.
WORTHWHILE_SECONDS = 600.0

#: Layers that draw random numbers when in training mode.
DRAWING_LAYERS = (nn.modules.dropout._DropoutNd, nn.RReLU)

Function = Callable[..., Any]


@cache
def available() -> bool:
    """Whether Inductor can compile here: a C++ compiler and Python's headers are there, and it is no Windows."""
    if sys.platform not in ("linux", "darwin"):
        return False
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    return shutil.which(compiler) is not None and Path(sysconfig.get_path("include"), "Python.h").is_file()


def decide(mode: str, macs: float, device: torch.device) -> bool:
    """Whether networks are compiled, from sizes alone.

    Args:
        mode: "on", "off", or "auto": on a CPU, for `WORTHWHILE_SECONDS` and more at the nominal speed.
        macs: multiply-accumulates of the whole run, as planned.
        device: where it runs; elsewhere than on a CPU nothing was measured, and "auto" leaves it.

    Raises:
        InputError: an unknown mode, or "on" where nothing can be compiled.
    """
    if mode not in MODES:
        raise InputError(f"There is no compile mode {mode!r}. {nearest(str(mode), MODES)}")
    if mode == "on":
        require()
        return True
    long = macs >= WORTHWHILE_SECONDS * NOMINAL_MACS_PER_SECOND["cpu"]
    return mode == "auto" and device.type == "cpu" and long and available()


def require() -> None:
    """InputError where nothing can be compiled."""
    if not available():
        raise InputError(
            "Compiled networks need a C++ compiler and Python's headers, which are not here; install them (on Debian: "
            "g++ and python3-dev), or do without (--compile off)."
        )


def draws(network: nn.Module) -> bool:
    """Whether layers draw random numbers in their present mode: compiled code, and other chunks, would draw others."""
    return any(module.training and isinstance(module, DRAWING_LAYERS) for module in network.modules())


def even_chunk(count: int, most: int) -> int:
    """Images per pass so that `count` images take as few passes of one size as `most` allows.

    Rounded up to four significant bits, so that batches whose size varies share a few shapes.
    """
    size = -(-count // -(-count // most))
    step = 1 << max(0, size.bit_length() - 4)
    return min(most, -(-size // step) * step)


def padded(x: Tensor, size: int) -> Tensor:
    """Rows (n, ...) as (size, ...), filled up with the first, contiguous; n is at least 1."""
    if len(x) < size:
        x = torch.cat([x, x[:1].expand(size - len(x), *x.shape[1:])])
    return x.contiguous()


def call(function: Function, network: nn.Module, *tensors: Tensor, then: Function | None = None) -> Any:
    """`then(function(network, *tensors))`, with the function compiled; eagerly where that cannot be done.

    The first failure of a process is told by a warning. A first call whose numbers are not finite counts as one
    where the function itself gives finite ones.

    Args:
        function: of a module, without closure; it is traced whole.
        tensors: contiguous, of few shapes; each shape is compiled anew.
        then: what needs the compiled graph to be there still, such as its backward pass.
    """
    finish: Function = _same if then is None else then
    key = _key(function, network, tensors)
    if key not in _ENGINES:
        return _first(key, function, finish, network, tensors)
    engine = _ENGINES[key]
    if engine is not None:
        try:
            return finish(engine(network, *tensors))
        except Exception as error:  # a user's network may do something new in a later pass
            return _eagerly(key, error, function, finish, network, tensors)
    _Fallbacks.count += 1
    return finish(function(network, *tensors))


def fallbacks() -> int:
    """How many calls of this process ran eagerly since compiling had failed."""
    return _Fallbacks.count


#: The compiled function of each key, None where compiling failed.
_ENGINES: dict[Any, Function | None] = {}


class _Fallbacks:
    count = 0
    told = False


def _same(value: Any) -> Any:
    return value


def _key(function: Function, network: nn.Module, tensors: tuple[Tensor, ...]) -> Any:
    """What compiled code is specialized to. Options of layers are not in it: dynamo guards those."""
    device = tensors[0].device.type
    return (
        function,
        tuple((type(module), module.training) for module in network.modules()),
        tuple((p.shape, p.dtype, p.requires_grad) for p in network.parameters()),
        tuple((t.shape, t.dtype, t.device, t.requires_grad) for t in tensors),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled(device),
        torch.get_autocast_dtype(device),
        torch.get_num_threads(),
    )


def _first(key: Any, function: Function, finish: Function, network: nn.Module, tensors: tuple[Tensor, ...]) -> Any:
    try:
        with _interrupts_kept_from_children():
            engine = _compiled(function)
            out = finish(engine(network, *tensors))
        if not _finite(out) and _finite(finish(function(network, *tensors))):
            raise ArithmeticError(
                "compiled code gave numbers that are not finite, where ordinary code gives finite ones"
            )
    except Exception as error:
        return _eagerly(key, error, function, finish, network, tensors)
    _ENGINES[key] = engine
    return out


def _finite(value: Any) -> bool:
    """Whether all numbers in a tensor, or in tensors of tuples and dicts, are finite."""
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return all(_finite(part) for part in parts)


def _compiled(function: Function) -> Function:
    """The function under a code object of its own: dynamo keeps what it compiles with the code object."""
    assert isinstance(function, types.FunctionType)
    own = types.FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    # One compiling thread: more would be processes that stay, one pool for every worker of a comparison.
    return torch.compile(own, dynamic=False, fullgraph=True, options={"compile_threads": 1})


def _eagerly(
    key: Any, error: Exception, function: Function, finish: Function, network: nn.Module, tensors: tuple[Tensor, ...]
) -> Any:
    """The call without compiling, from now on; an error that is the network's own comes again, as it is."""
    out = finish(function(network, *tensors))
    _ENGINES[key] = None
    _Fallbacks.count += 1
    if not _Fallbacks.told:
        _Fallbacks.told = True
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        warnings.warn(
            f"The network could not be compiled and runs as it is ({type(error).__name__}: {first[:200]}).",
            stacklevel=4,
        )
    return out


@contextlib.contextmanager
def _interrupts_kept_from_children() -> Iterator[None]:
    """Ctrl-C reaches the C++ compiler too, and a step that ran eagerly for its sake would differ after a resume.

    Children inherit the mask; this process still gets the signal, through another thread or when the block ends.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
