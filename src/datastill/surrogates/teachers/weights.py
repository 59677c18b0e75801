"""Named weights into a network: by the names that wrappers, losses and profilers left them."""

from __future__ import annotations

import re

from torch import Tensor, nn

from datastill.core.errors import InputError


def load_weights(module: nn.Module, weights: dict[str, Tensor], where: object) -> str:
    """Load named tensors into a module, by the names that are left without the prefixes of wrappers.

    Returns:
        What was done to names, a sentence without its full stop: the prefix that was taken off (`module.`,
        `_orig_mod.module.`, `net.`), and what was passed over because it is no weight of the network; "" for nothing.

    Raises:
        InputError: names or shapes do not fit; the first is named.
    """
    wanted = module.state_dict()
    found, prefix = _renamed(weights, set(wanted), where)
    besides = [n for n in found if n not in wanted and _no_weight(n, found[n])]
    missing = [n for n in wanted if n not in found and not n.endswith("num_batches_tracked")]
    unknown = [n for n in found if n not in wanted and n not in besides]
    told = [f"without the prefix {prefix!r}"] if prefix else []
    if missing or unknown:
        what = f"lack {missing[0]!r}" if missing else f"have {unknown[0]!r}, which the network has not"
        after = f" ({told[0]} of their names)" if told else ""
        raise InputError(
            f"The weights in {where} do not fit {type(module).__name__}: they {what}{after}; name its network."
        )
    loaded = {name: tensor for name, tensor in found.items() if name in wanted}
    for name, tensor in loaded.items():
        if tensor.shape != wanted[name].shape:
            raise InputError(
                f"The weights in {where} do not fit {type(module).__name__}: {name!r} is {tuple(tensor.shape)} and "
                f"{tuple(wanted[name].shape)} is needed."
            )
    module.load_state_dict(loaded, strict=False)
    besides += [n for n in weights if not n.startswith(prefix)]
    if besides:
        told.append(f"passing over {besides[0]!r}" + (f" and {len(besides) - 1} more" if len(besides) > 1 else ""))
    return ", ".join(told)


#: What losses, profilers and averages leave in a checkpoint beside the weights.
_BESIDES = re.compile(r"(^|\.)(criterion|loss\w*|metrics?|total_ops|total_params|n_averaged)(\.|$)")


def _no_weight(name: str, tensor: Tensor) -> bool:
    return tensor.numel() <= 1 or bool(_BESIDES.search(name))


def _renamed(weights: dict[str, Tensor], wanted: set[str], where: object) -> tuple[dict[str, Tensor], str]:
    """The weights under the prefix by which most of their names are wanted, without it; and that prefix.

    Wrappers put prefixes before names, several where they are nested, and a checkpoint may hold more than the network
    (a head of its own beside `backbone.`). A network that is itself wrapped wants `module.` before all names.

    Raises:
        InputError: two prefixes fit as well as each other.
    """
    inside = "module." if wanted and all(name.startswith("module.") for name in wanted) else ""
    prefixes = {""}
    for name in weights:
        parts = name.split(".")
        prefixes |= {".".join(parts[:depth]) + "." for depth in range(1, min(len(parts), 5))}

    def under(prefix: str, before: str) -> dict[str, Tensor]:
        return {before + n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}

    fits = [(under(prefix, before), prefix) for prefix in prefixes for before in {"", inside}]
    most = max(len(found.keys() & wanted) for found, _ in fits)
    best = sorted({prefix for found, prefix in fits if len(found.keys() & wanted) == most})
    best = [one for one in best if not any(one != other and one.startswith(other) for other in best)]
    if most and len(best) > 1:
        which = " and ".join(map(repr, best))
        raise InputError(f"The weights in {where} are those of several networks ({which}); save those of one.")
    return max(fits, key=lambda fit: (len(fit[0].keys() & wanted), -len(fit[1])))
