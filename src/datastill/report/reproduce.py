"""How to make a distilled set again: the Python call and the command, out of its manifest."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from datastill.evaluation.kinds import other_ways
from datastill.report import words
from datastill.store.manifest import Data, Manifest

#: Options of `load_real` that the command line has too.
_FLAGS = ("size", "mode", "skip_bad", "space", "follow_links", "train", "test", "val")
_WIDTH = 96


def python_call(manifest: Manifest | Mapping[str, Any]) -> str:
    """A script that makes the set again, with every hyper-parameter written out."""
    record = Manifest.of(manifest, "The manifest")
    if record.imported is not None:
        return "# this set was made by others and imported with datastill.import_released"
    hyper, given = _hyper(record)
    arguments = {"ipc": record.ipc, "seed": record.seed, **_engine(record), **_exchanged(record), **hyper}
    lines = ["from datastill import distill, load_real", ""]
    lines += [f"# {name} was a tensor of yours: pass it too" for name in given]
    if record.network is not None and record.network.spec is None:
        lines.append("# the network was yours: pass it as network=")
    lines.append(f"real = {_load(record.data)}")
    if _weighted_by_hand(record):
        lines.append("# the images were weighted: real = real.with_weights(...)")
    if record.method_file:
        lines.append(f"# the method is in the maker's own {record.method_file}: give the path to that")
    lines.append("distilled = " + _call("distill", [literal(_method(record)), "real"], arguments))
    return "\n".join(lines)


def command(manifest: Manifest | Mapping[str, Any], out: str = "runs/again") -> str | None:
    """The command that makes the set again, or None where a command line cannot say it."""
    record = Manifest.of(manifest, "The manifest")
    options = options_of(record)
    if options is None:
        return None
    parts = ["datastill", "distill", _method(record)]
    for name, item in options.items():
        parts += _flag(name, item)
    return shlex.join([*parts, "--out", out])


def options_of(record: Manifest) -> dict[str, Any] | None:
    """What the command that makes the set again is given, by name; None where a command line cannot say it."""
    data = record.data
    hyper, given = _hyper(record)
    options = dict(data.options)
    if isinstance(options.get("size"), list) and len(set(options["size"])) == 1:
        options["size"] = options["size"][0]
    unsaid = set(options) - set(_FLAGS)
    if record.imported is not None or given or unsaid or isinstance(options.get("size"), list) or not data.source:
        return None
    if _weighted_by_hand(record) or (record.network is not None and record.network.spec is None):
        return None
    settings = {"data": data.source, **options, "ipc": record.ipc, "seed": record.seed, **_engine(record)}
    return {**settings, **_exchanged(record), **hyper}


def _method(record: Manifest) -> str:
    return f"path/to/{record.method_file}" if record.method_file else record.method


def evaluate_call(evaluation: Mapping[str, Any], folder: str = "path/of/this/folder") -> str:
    """A script that scores a saved set again, out of `Evaluation.to_dict()`."""
    accuracies = evaluation["distilled"]["accuracies"]
    folders = [folder, *(f"path/of/set/{k + 1}" for k in range(1, len(accuracies)))]
    sets = literal(folders if len(folders) > 1 else folder)
    settings: dict[str, Any] = {"protocol": evaluation["protocol"], "networks": len(accuracies[0])}
    settings |= other_ways(evaluation)
    if evaluation.get("network", {}).get("spec"):
        settings["network"] = evaluation["network"]["spec"]
    if evaluation.get("seed"):
        settings["seed"] = evaluation["seed"]
    if evaluation.get("cost", {}).get("precision", "float32") != "float32":
        settings["precision"] = evaluation["cost"]["precision"]
    if evaluation.get("training"):
        settings["training"] = words.training(evaluation["training"])
    if evaluation.get("ceiling"):
        settings["ceiling"] = True
    call = _call("evaluate", [sets], settings)
    return f"from datastill import evaluate\n\nprint({call}.verdict)"


def _hyper(record: Manifest) -> tuple[dict[str, Any], list[str]]:
    """Hyper-parameters that can be written down, and the names of those that were tensors."""
    hyper = record.hyper
    given = [n for n, v in hyper.items() if isinstance(v, str) and v.startswith("tensor ")]
    return {n: v for n, v in hyper.items() if n not in given}, given


def _engine(record: Manifest) -> dict[str, Any]:
    """Recipe and network, and precision and compilation where they are not the usual ones."""
    cost, spec = record.cost, None if record.network is None else record.network.spec
    unusual = {"precision": cost.precision} if cost.precision != "float32" else {}
    unusual |= {"recipe": record.recipe.asked} if record.recipe.asked not in ("", "auto") else {}
    return {**({"network": spec} if spec else {}), **unusual, **({"compile": "on"} if cost.compile else {})}


def _exchanged(record: Manifest) -> dict[str, Any]:
    """The options of what the run changed in its method."""
    return {kind.option: text for kind, one in record.changes if (text := kind.text(one))}


def _weighted_by_hand(record: Manifest) -> bool:
    """Whether the images had weights that no option of the run gave them."""
    return record.data.weighted and not any(kind.weighs and kind.text(one) for kind, one in record.changes)


def _load(data: Data) -> str:
    if not data.source:
        return "load_real((images, labels))  # the arrays or the dataset that you gave"
    return _call("load_real", [literal(data.source)], data.options)


def _call(name: str, first: list[str], arguments: Mapping[str, Any]) -> str:
    parts = [*first, *(f"{key}={literal(item)}" for key, item in arguments.items())]
    line = f"{name}({', '.join(parts)})"
    if len(line) <= _WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + ")"


def literal(item: Any) -> str:
    """A value as Python, with double quotes."""
    if isinstance(item, str):
        return json.dumps(item, ensure_ascii=False)
    if isinstance(item, list | tuple):
        return f"[{', '.join(map(literal, item))}]"
    if isinstance(item, Mapping):
        return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in item.items()) + "}"
    return repr(item)


def _flag(name: str, item: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(item, bool):
        return [f"--{flag}" if item else f"--no-{flag}"]
    if isinstance(item, list | tuple):
        return [f"--{flag}", *(str(part) for part in item)]
    return [f"--{flag}", str(item)]
