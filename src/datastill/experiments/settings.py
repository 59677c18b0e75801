"""Everything that a comparison was asked for, checked and written down."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from datastill.augment.strategies import AUGMENTED_SIDE
from datastill.core.cost import pick_device
from datastill.core.errors import InputError, nearest
from datastill.core.overrides import overrides, taken_from
from datastill.core.ranges import declared
from datastill.core.registry import get_method, with_overrides
from datastill.evaluation.protocols import Protocol, get_protocol
from datastill.evaluation.robustness import refuse_unscored
from datastill.experiments.sources import RealSets
from datastill.experiments.tuning import RATES
from datastill.models.code import States, code_of
from datastill.store.checkpoint import plain
from datastill.training.optimizers import usual

if TYPE_CHECKING:
    from datastill.data.real import RealSet

#: What every method is compared with.
BASELINE = "random"
#: Options of `load_real` that the command line has too.
_DATA_FLAGS = ("size", "mode", "skip_bad", "space", "follow_links", "train", "test", "val")


@dataclass(frozen=True)
class Settings:
    """What to compare, and how."""

    methods: Mapping[str, str]  #: registered name -> as it was given (a name, or a file of the user's)
    ipc: tuple[int, ...]
    seeds: tuple[int, ...]
    network: Any
    protocol: Protocol
    networks: int
    recipe: str
    overrides: Mapping[str, Mapping[str, Any]]  #: method -> hyper-parameters over the recipe's
    budget: float | None
    device: str
    precision: str = "float32"
    compile: str = "auto"
    optimizer: str = "auto"  #: that trains networks in the place of the protocol's
    scores: str = "none"  #: "fractions" or "released": LRS and ARS too, in that arithmetic
    #: what every method but Random has changed, by the option of an override and its text
    changes: Mapping[str, str] = field(default_factory=dict)

    @property
    def learned_lr(self) -> bool:
        """Whether sets are trained on at rates that they learned, which are for the protocol's optimizer."""
        return self.protocol.learned_lr and self.optimizer == "auto"

    @property
    def scoring(self) -> dict[str, str]:
        """How sets are scored, where not as the protocol alone says."""
        given = {"optimizer": (self.optimizer, "auto"), "scores": (self.scores, "none")}
        return {name: value for name, (value, usual) in given.items() if value != usual}

    def config(self, reals: RealSets) -> dict[str, Any]:
        """All that the numbers depend on, JSON-able; a comparison that is taken up again must agree with it."""
        rates = {"rates": list(RATES)} if self.learned_lr else {}
        return plain(
            {
                "data": {label: one.fingerprint for label, one in reals.references.items()},
                "methods": list(self.methods),
                "ipc": list(self.ipc),
                "seeds": list(self.seeds),
                "network": self._network_record(reals),
                "protocol": asdict(self.protocol),
                "networks": self.networks,
                "recipe": self.recipe,
                "settings": self.overrides,
                "budget": self.budget,
                "device": pick_device(self.device).type,
                "precision": self.precision,
                "compile": self.compile,
                **rates,
                **self.scoring,
                **({"changes": self.changes} if self.changes else {}),
                **({"code": code} if (code := self._code(reals)) else {}),
            }
        )

    def _code(self, reals: RealSets) -> States:
        """The user's files that are called."""
        networks = [] if self.network is None else [reals.network(label, self.network) for label in reals.labels()]
        return code_of(*(get_method(given).cls for given in self.methods.values()), *networks)

    def _network_record(self, reals: RealSets) -> Any:
        """A name as it is; a class or module of the caller's by what identifies its architecture."""
        if self.network is None or isinstance(self.network, str):
            return self.network
        return {label: reals.network(label, self.network).describe() for label in reals.labels()}

    def command(self, reals: RealSets) -> str | None:
        """The command that makes this comparison, or None where a command line cannot say it."""
        options = [json.loads(one.options) for one in reals.references.values()]
        sources = [one.source for one in reals.references.values()]
        own_network = self.network is not None and not isinstance(self.network, str)
        alike = all(one == options[0] for one in options) and not set(options[0]) - set(_DATA_FLAGS)
        if not all(sources) or not alike or own_network or self.protocol != _known(self.protocol.name):
            return None
        words = ["datastill", "compare", "--data", *sources]
        for name, value in options[0].items():
            side = value[0] if isinstance(value, list) else value
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(side)])]
        words += ["--methods", *self.methods.values(), "--ipc", *map(str, self.ipc), *self._seed_words()]
        words += ["--protocol", self.protocol.name, "--networks", str(self.networks)]
        words += [] if self.network is None else ["--network", self.network]
        words += [] if self.recipe == "auto" else ["--recipe", self.recipe]
        words += [] if self.budget is None else ["--budget", f"{self.budget:g}s"]
        changes = [f"{m}.{n}={json.dumps(v)}" for m, values in self.overrides.items() for n, v in values.items()]
        words += ["--set", *changes] if changes else []
        words += [word for name, text in self.changes.items() for word in (f"--{name}", text)]
        words += [] if self.device == "auto" else ["--device", self.device]
        words += [] if self.precision == "float32" else ["--precision", self.precision]
        words += [] if self.compile == "auto" else ["--compile", self.compile]
        words += [word for name, text in self.scoring.items() for word in (f"--{name}", text)]
        return shlex.join(words)

    def _seed_words(self) -> list[str]:
        if self.seeds == tuple(range(len(self.seeds))):
            return ["--seeds", str(len(self.seeds))]
        return ["--seed-list", *map(str, self.seeds)]


def make_settings(
    methods: Sequence[str] | str,
    reals: RealSets,
    *,
    ipc: int | Iterable[int],
    seeds: int | Iterable[int],
    network: Any,
    protocol: str | Protocol,
    networks: int,
    recipe: str,
    settings: Mapping[str, Mapping[str, Any]] | None,
    budget: float | None,
    device: str,
    precision: str = "float32",
    compile: str = "auto",
    optimizer: str = "auto",
    scores: str = "none",
    changes: Mapping[str, str] | None = None,
) -> Settings:
    """Settings out of what a caller gave.

    Raises:
        InputError: an unknown name, a number out of range, something given twice.
    """
    named = _methods([methods] if isinstance(methods, str) else list(methods))
    many_seeds = range(_whole("seeds", seeds, 1)) if isinstance(seeds, int) else seeds
    sizes = [ipc] if isinstance(ipc, int) else list(ipc)
    if budget is not None and not budget > 0:
        raise InputError(f"The budget must be above 0 seconds, not {budget}.")
    sets = [reals.get(label) for label in reals.labels()]
    one_protocol = pick_protocol(protocol, [one.shape for one in sets], [one.kind for one in sets])
    _check_scoring(one_protocol, sets, optimizer, scores)
    return Settings(
        methods=named,
        ipc=_distinct("ipc", sizes, 1),
        seeds=_distinct("seeds", many_seeds, 0),
        network=network,
        protocol=one_protocol,
        networks=_whole("networks", networks, 1),
        recipe=recipe,
        overrides=settings_of(settings or {}, named),
        budget=budget,
        device=device,
        precision=precision,
        compile=compile,
        optimizer=optimizer,
        scores=scores,
        changes=_changes(changes or {}),
    )


def _check_scoring(protocol: Protocol, sets: Sequence[RealSet], optimizer: str, scores: str) -> None:
    """The protocol is for sets of all methods; another optimizer and scores are for those that take them.

    Raises:
        InputError: they do not, or there is no such optimizer or arithmetic.
    """
    protocol.check_any_set()
    if optimizer != "auto":
        usual(optimizer)
        protocol.check_own_way("its optimizer")
    if scores not in ("none", "fractions", "released"):
        raise InputError(f"Scores are none, fractions or released, not {scores!r} (--scores).")
    for one in sets if scores != "none" else ():
        refuse_unscored(one.kind, one.name, protocol)


def _changes(given: Mapping[str, str]) -> dict[str, str]:
    """Those that change something."""
    asked, unknown = taken_from(dict(given))
    if unknown:
        raise InputError(f"compare has no option {next(iter(unknown))!r}. {nearest(next(iter(unknown)), overrides())}")
    return {one.option: given[one.option] for one in asked}


def pick_protocol(protocol: str | Protocol, shapes: Iterable[tuple[int, ...]], kinds: Collection[str] = ()) -> Protocol:
    """One protocol for all methods and data sets.

    "auto" is dsa-quick-v1 where any images have at least 16 pixels a side, else dc-v1: methods that differ in
    what they would ask for are compared under one. On sets of pairs (`kinds`) it is vl-v1.
    """
    if isinstance(protocol, Protocol):
        return protocol
    if protocol != "auto":
        return get_protocol(protocol)
    if "pairs" in kinds:
        return get_protocol("vl-v1")
    large = any(min(shape[1:]) >= AUGMENTED_SIDE for shape in shapes)
    return get_protocol("dsa-quick-v1" if large else "dc-v1")


def _methods(given: list[str]) -> dict[str, str]:
    """Registered name -> as given; Random leads where it was not named."""
    if not given:
        raise InputError("Name the methods to compare: methods=['dm'], or --methods dm; Random is added.")
    named: dict[str, str] = {}
    for one in given:
        if not isinstance(one, str):
            raise InputError(f"Methods are compared by name, or by a file such as my_method.py, not {one!r}.")
        name = get_method(one).name
        if name in named:
            raise InputError(f"The method {name!r} is given twice; name each once.")
        named[name] = one
    return named if BASELINE in named else {BASELINE: BASELINE, **named}


def settings_of(given: Mapping[str, Mapping[str, Any]], methods: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Settings by the registered names of methods, each checked.

    Args:
        given: hyper-parameters by method, named as registered or as given.
        methods: registered name to name or file as given.

    Raises:
        InputError: settings of a method that is not there, or that it does not take.
    """
    found: dict[str, dict[str, Any]] = {}
    for key, values in given.items():
        name = next((name for name, text in methods.items() if key in (name, text)), None)
        if name is None:
            raise InputError(f"There are settings for {key!r}, which is no method here. {nearest(key, methods)}")
        method = get_method(methods[name]).cls()
        _, hyper = taken_from(dict(values))
        with_overrides(method, hyper, called=f"{key}.{{name}}")
        found[name] = dict(values)
    return found


def refuse_unknown_values(values: Mapping[str, Any], methods: Iterable[str]) -> None:
    """Refuse values, for all methods or by the name of one, that none of these would take.

    Raises:
        InputError: the first is named.
    """
    known = {name: set(declared(get_method(name).cls)) for name in methods}
    for name, value in values.items():
        if isinstance(value, Mapping):
            if name not in known:
                raise InputError(f"There are values for {name!r}, which is no method here. {nearest(name, known)}")
            with_overrides(get_method(name).cls(), dict(value), called=f"{name}.{{name}}")
        elif not any(name in fields for fields in known.values()):
            every = set().union(*known.values())
            raise InputError(f"None of these methods has a hyper-parameter {name!r}. {nearest(name, every)}")


def _distinct(name: str, values: Iterable[Any], least: int) -> tuple[int, ...]:
    found = tuple(_whole(name, value, least) for value in values)
    if not found or len(set(found)) < len(found):
        raise InputError(f"{name} must be one or more different whole numbers, not {list(found)}.")
    return found


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise InputError(f"{name} must be a whole number of at least {least}, and of 64 bits, not {str(value)[:60]}.")
    return value


def _known(name: str) -> Protocol | None:
    try:
        return get_protocol(name)
    except InputError:
        return None
