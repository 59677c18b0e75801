"""Code that the user brought: telling its errors from ours, in a sentence, with their part of the traceback."""

from __future__ import annotations

import contextlib
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datastill.core.errors import DatastillError, UserCodeFailed
from datastill.core.rng import isolated

_OURS = "datastill"
_LIBRARIES = {"torch", "torchvision", "timm", "functorch", *sys.stdlib_module_names}
_INSTALLED = {str(Path(sysconfig.get_path(name)).resolve()) for name in ("purelib", "platlib")}
_NO_GRAPH = "no gradient goes through; take out torch.no_grad and detach."
#: Layers of attributes in which a part of a plan may hold a user's object.
_DEPTH = 3


class FindsTheirs:
    """What finds an object of the user's by its name."""

    def found(self) -> Any:
        """The object."""
        raise NotImplementedError


def is_theirs(thing: Any) -> bool:
    """Whether a class, a function or the class of an object is in neither datastill, nor torch, nor Python itself."""
    root = str(_kind(thing).__module__ or "builtins").partition(".")[0]
    module = sys.modules.get(root)
    return root != _OURS and root not in _LIBRARIES and not _installed(getattr(module, "__file__", ""))


def _kind(thing: Any) -> Any:
    """A class or function as it is, the class of what else there is."""
    while isinstance(thing, partial):
        thing = thing.func
    named = isinstance(thing, type) or inspect.isfunction(thing) or inspect.ismethod(thing) or inspect.isbuiltin(thing)
    return thing if named else type(thing)


def holds_theirs(thing: Any, depth: int = _DEPTH) -> bool:
    """Whether an object, or one that it holds, is of the user's code, or finds that by name."""
    if isinstance(thing, type):
        return is_theirs(thing)
    if isinstance(thing, FindsTheirs):
        return True
    if isinstance(thing, partial):
        return any(holds_theirs(part, depth) for part in (thing.func, *thing.args, *thing.keywords.values()))
    if isinstance(thing, Mapping):
        return any(holds_theirs(part, depth) for part in thing.values())
    if isinstance(thing, list | tuple):
        return any(holds_theirs(part, depth) for part in thing)
    if is_theirs(thing) or not depth or inspect.isroutine(thing):
        return is_theirs(thing)
    try:
        held = vars(thing)
    except TypeError:  # it has slots, or is no Python object
        return False
    return any(holds_theirs(part, depth - 1) for part in held.values())


def called(thing: Any) -> str:
    """A user's class or function with the file that it is in."""
    kind = _kind(thing)
    try:
        place = Path(inspect.getfile(kind)).name
    except (OSError, TypeError):  # made in an interpreter
        place = str(kind.__module__)
    return f"{kind.__qualname__} ({place})"


@contextlib.contextmanager
def blaming(at: Callable[[], str], network: Callable[[], Any] | None = None) -> Iterator[None]:
    """Around code that calls into the user's: what fails in theirs ends in a sentence, what fails in ours stays.

    Args:
        at: when it happened, such as "at step 3 of 9"; asked only then.
        network: gives the network at work, which is tried where ours failed on what it returned.

    Raises:
        UserCodeFailed: the innermost frame that is neither a library's nor Python's is the user's, or their network
            breaks its contract.
    """
    try:
        yield
    except UserCodeFailed as error:
        raise error.told(at()) from error.__cause__
    except DatastillError:
        raise
    except Exception as error:
        failed = _theirs(error) or (_broken(network()) if network is not None else None)
        if failed is None:
            raise
        raise failed.told(at()) from error


def _theirs(error: Exception) -> UserCodeFailed | None:
    """The error as the user's, or None where our code is the innermost."""
    frames = list(traceback.walk_tb(error.__traceback__))
    owners = [_owner(str(frame.f_globals.get("__name__", "")), frame.f_code.co_filename) for frame, _ in frames]
    known = [k for k, owner in enumerate(owners) if owner != "library"]
    if not known or owners[known[-1]] == "ours":
        return None
    last = known[-1]
    first = max((k for k in known if owners[k] == "ours"), default=-1)
    part = [pair for k, pair in enumerate(frames) if (k > first and owners[k] == "theirs") or k > last]
    part = [(frame, line) for frame, line in part if frame.f_globals.get("__name__") != nn.Module.__module__]
    shown = [*traceback.StackSummary.extract(iter(part)).format(), *traceback.format_exception_only(error)]
    frame, line = frames[last]
    what = f"{type(error).__name__}: {error}".split("\n")[0]
    name = f"{frame.f_code.co_qualname} ({Path(frame.f_code.co_filename).name}, line {line})"
    return UserCodeFailed(f"Code that is not datastill's failed: {name}: {what}", "".join(shown))


def _owner(module: str, file: str) -> str:
    root = module.partition(".")[0]
    if root == _OURS:
        return "ours"
    return "library" if root in _LIBRARIES or _installed(file) or file.startswith("<") else "theirs"


def _installed(file: str | None) -> bool:
    return bool(file) and any(str(parent) in _INSTALLED for parent in Path(str(file)).resolve().parents)


def _broken(network: Any) -> UserCodeFailed | None:
    """What a user's network does that none may do, or None."""
    if not isinstance(network, nn.Module):
        return None
    inner = _inner(network)
    if not any(is_theirs(m) for m in inner.modules()):
        return None
    of: Any = network  # whatever the caller wrapped has these
    at, classes = next((p.device for p in network.parameters()), torch.device("cpu")), int(of.classes)
    x = torch.zeros(2, of.channels, *of.size, device=at, requires_grad=True)
    try:
        with torch.enable_grad(), isolated(0):
            out = network(x)
            if isinstance(out, Tensor):
                refuse_no_graph(out, network)
    except UserCodeFailed as error:
        return error
    except Exception as error:
        return _theirs(error)
    return wrong_logits(out, 2, classes, inner)


def refuse_no_graph(logits: Tensor, network: nn.Module) -> None:
    """Refuse logits of images that need a gradient, where none goes through.

    Raises:
        UserCodeFailed: none does.
    """
    if not logits.requires_grad:
        raise UserCodeFailed(f"The network {called(_inner(network))} gives logits that {_NO_GRAPH}")


def _inner(module: nn.Module) -> nn.Module:
    """The user's module in our wrapper."""
    inner = getattr(module, "module", module)
    return inner if isinstance(inner, nn.Module) else module


def wrong_logits(out: Any, count: int, classes: int, network: nn.Module) -> UserCodeFailed | None:
    """What is wrong with what a network gave for so many images, or None."""
    if not isinstance(out, Tensor):
        return UserCodeFailed(f"{called(network)} must return one tensor of logits, not {type(out).__name__}.")
    if tuple(out.shape) == (count, classes):
        return None
    return UserCodeFailed(
        f"{called(network)} must return logits of shape ({count}, {classes}) for {count} images of {classes} classes, "
        f"and returned {tuple(out.shape)}."
    )


def checked_loss(out: Any, moving: Sequence[str], objective: Any, network: Any) -> Tensor:
    """What an objective returned, where it is a loss that has a graph.

    Raises:
        UserCodeFailed: it is none, and objective or network are the user's.
    """
    if isinstance(out, Tensor) and out.ndim > 1 and is_theirs(objective):
        raise UserCodeFailed(
            f"The objective {called(objective)} must return a loss, or one for each class, and returned numbers of "
            f"shape {tuple(out.shape)}."
        )
    if isinstance(out, Tensor) and (out.requires_grad or not moving):
        return out
    if isinstance(out, Tensor) and not is_theirs(objective) and (failed := _broken(network)) is not None:
        raise failed
    if is_theirs(objective) and isinstance(out, Tensor):
        raise UserCodeFailed(f"The objective {called(objective)} returned a loss that {_NO_GRAPH}")
    if is_theirs(objective):
        shown = repr(out) if out is None or isinstance(out, float | int) else type(out).__name__
        raise UserCodeFailed(
            f"The objective {called(objective)} must return a tensor (a loss, or one for each class) or Grads, and "
            f"returned {shown}."
        )
    return out  # ours, and a bug of ours: what comes next says so
