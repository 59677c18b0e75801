"""A walk over all commands, their options, and values that cannot be: a sentence, exit code 2, and nothing left behind.

What an option may be is read from where it is declared, so a new command, method or option is walked by existing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import random
import shutil
import signal
import typing
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro

from datastill import distill, methods
from datastill.cli import COMMANDS, main
from datastill.core.errors import DatastillError, InputError
from datastill.core.ranges import SWITCH, TEXT, Kind, Numbers, Several, Words, declared, kinds_of
from datastill.core.registry import Method, with_overrides
from datastill.debias.density import Kernel
from datastill.debias.loss import ByLoss
from datastill.debias.reweight import way_of
from datastill.methods.dc import DC
from datastill.methods.dream import Dream
from datastill.methods.idc import IDC
from datastill.surrogates.debiased import DebiasedSurrogates
from datastill.surrogates.experts.policies import POLICIES, get_policy
from datastill.training.debiased import DebiasedTraining
from datastill.training.dfa import Dfa
from datastill.training.extractor import Extractor
from datastill.training.selecmix import SelecMix

METHODS = sorted(methods())
#: Commands that are several.
ACTIONS = {"teacher": ("train", "import", "inspect"), "experts": ("train", "inspect", "import"), "study": ("debias",)}
ACTIONS |= {"federated": ("feddm", "fedmk", "fedavg", "fedprox")}
#: What a command needs before it looks at an option; {set}, {out}, {file} are a set, a new folder, and a file.
NEEDED = {
    "evaluate": ["{set}", "--networks", "1", "--protocol", "dc-v1", "--no-random"],
    "relabel": ["{set}"],
    "export": ["{set}", "{out}", "--no-score"],
    "inspect": ["{set}"],
    "push": ["{set}", "nope"],
    "pull": ["nope", "--out", "{out}"],
    "import": ["{file}", "--data", "digits", "--out", "{out}"],
    "teacher train": ["--out", "{out}", "--passes", "1", "--network", "convnet:width=4,depth=1,norm=batch"],
    "teacher import": ["{file}", "--network", "convnet:width=4,depth=1,norm=batch", "--out", "{out}"],
    "teacher inspect": ["{set}"],
    "experts train": ["--out", "{out}", "--epochs", "1", "--experts", "1", "--network", "convnet:width=4,depth=1"],
    "experts inspect": ["{set}"],
    "experts import": ["{file}", "--data", "digits", "--out", "{out}"],
    "compare": ["--methods", "random", "--out", "{out}", "--seeds", "1", "--networks", "1"],
    "study debias": ["--out", "{out}", "--dataset", "nope"],
    "demo": ["--out", "{out}", "--sets", "1", "--networks", "1", "--steps", "1"],
    "weigh": ["--out", "{out}", "--debias", "nope"],
    "distill": ["--out", "{out}", "--network", "nope"],
    "estimate": ["--network", "nope"],
    "privacy": ["{set}", "--protocol", "nope"],
    "continual": ["random", "--out", "{out}", "--network", "nope"],
    "nas": ["nope", "--out", "{out}"],
    "backdoor": ["dm", "--out", "{out}", "--network", "nope"],
    "leak": ["--out", "{out}", "--network", "nope"],
    "attribute": ["random", "--out", "{out}", "--network", "nope"],
    "federated feddm": ["--out", "{out}", "--network", "nope"],
    "federated fedmk": ["--out", "{out}", "--network", "nope"],
    "federated fedavg": ["--out", "{out}", "--network", "nope"],
    "federated fedprox": ["--out", "{out}", "--network", "nope"],
}
#: Numbers that no range holds, or few.
NUMBERS = ("nan", "inf", "-inf", "1e400", "99999999999999999999", "-99999999999999999999", "x", "", "1.5")
WORDS = ("", "nope", "[red]", "x" * 5000)
TEXTS = (*WORDS, "\0", "nope:nope=1", ":", "=", "nan", "../nope", "a|b<c>&", "nope/nope", "nope.py:nope", "nope:x=1,,")
Case = tuple[str, str, str, str]  #: key of NEEDED, words of the command, option, value
Walk = Callable[[list[Case], bool], list[str]]


def lines() -> Iterator[tuple[str, str]]:
    """Every command line without options: its name as in NEEDED, and the words."""
    for command in COMMANDS:
        if command in ("distill", "estimate"):
            yield from ((command, f"{command} {name}") for name in METHODS)
        elif command in ACTIONS:
            yield from ((f"{command} {action}",) * 2 for action in ACTIONS[command])
        else:
            yield command, command


@functools.cache
def options_of(words: str) -> dict[str, tuple[Kind, ...]]:
    """What the options of a command take, by name, as the parser gets them."""
    seen: list[Any] = []

    def stop(cls: Any, **_: Any) -> None:
        seen.append(cls)
        raise SystemExit(2)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tyro, "cli", stop)
        main(words.split())
    return dict(walked(seen[0])) if seen else {}


def walked(cls: Any) -> Iterator[tuple[str, tuple[Kind, ...]]]:
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        if dataclasses.is_dataclass(hint) or typing.is_typeddict(hint):
            yield from walked(hint)
        else:
            yield name, kinds_of(hint)


def bad_values(kinds: tuple[Kind, ...]) -> list[str]:
    """Texts that none of these kinds holds."""
    if any(isinstance(kind, Several) for kind in kinds):
        kinds = next(kind.each for kind in kinds if isinstance(kind, Several))
    found: list[str] = []
    for kind in kinds:
        if isinstance(kind, Numbers):
            edges = [f"{v:.17g}" for v in (kind.low, kind.high) if v is not None]
            beyond = [f"{int(v) + way}" for v, way in ((kind.low, -1), (kind.high, 1)) if v is not None]
            found += [*NUMBERS, *edges, *beyond]
        elif isinstance(kind, Words):
            found += WORDS
    return [text for text in dict.fromkeys(found) if not any(read(text, kind) for kind in kinds)]


def read(text: str, kind: Kind) -> bool:
    """Whether a kind holds what the text is read as."""
    if not isinstance(kind, Numbers):
        return text in kind
    try:
        return (int(text) if kind.whole else float(text)) in kind
    except ValueError:
        return False


def cases() -> list[Case]:
    """(key of NEEDED, words, option, value) of everything that has to be refused."""
    return [
        (key, words, name, value)
        for key, words in lines()
        for name, kinds in options_of(words).items()
        for value in bad_values(kinds)
    ]


def texts() -> list[Case]:
    """Options that take texts, with odd ones."""
    return [
        (key, words, name, value)
        for key, words in lines()
        for name, kinds in options_of(words).items()
        if TEXT in kinds and not any(isinstance(kind, Words) for kind in kinds)
        for value in TEXTS
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "set"
    distill("random", "digits", ipc=1, network="convnet:width=4,depth=1", out=folder)
    return folder


@pytest.fixture
def walk(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Walk:
    """Run commands with an option each; what is wrong with what they say and leave."""
    (tmp_path / "file.pt").write_bytes(b"no tensors")
    monkeypatch.chdir(tmp_path)
    places = {"set": str(made), "out": str(tmp_path / "out"), "file": str(tmp_path / "file.pt")}

    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for root in (tmp_path, made) for path in root.rglob("*")}

    def one(case: Case, refused: bool) -> str:
        key, words, option, value = case
        needed = [part.format(**places) for part in NEEDED.get(key, [])]
        before = files()
        with limited():
            code = main([*words.split(), *needed, f"--{option.replace('_', '-')}={value}"])
        said = capsys.readouterr().err
        if code not in ((2,) if refused else (0, 2)) or "Traceback" in said:
            return f"exit code {code}: {said[-300:]}"
        if code == 2 and (not said.strip() or files() != before):
            return f"{said[-300:]!r}, left {sorted(map(str, files().keys() ^ before.keys()))}"
        dashed = option.replace("_", "-")
        return f"{option} is not named: {said[-300:]}" if refused and dashed not in said else ""

    def run(cases: list[Case], refused: bool) -> list[str]:
        found = []
        for case in cases:
            try:
                wrong = one(case, refused)
            except Exception as error:
                wrong = f"{type(error).__name__}: {error} {capsys.readouterr().err[-300:]}"
            if wrong:
                found.append(f"{' '.join(case[1:3])}={case[3][:40]!r}: {wrong}")
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
        return found

    return run


@contextlib.contextmanager
def limited(seconds: int = 60) -> Iterator[None]:
    """A hang is a failure."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"hangs for {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def sampled(found: list[Any], count: int, seed: int = 0) -> list[Any]:
    return random.Random(seed).sample(found, min(count, len(found)))


def test_every_command_is_walked() -> None:
    told = {words for _, words in lines() if options_of(words)}
    assert {words.split()[0] for words in told} == set(COMMANDS)
    assert {words.split()[1] for words in told if words.startswith("distill")} == set(METHODS)
    assert len(cases()) > 2_000


def test_values_out_of_their_range_are_refused(walk: Walk) -> None:
    assert walk(sampled(cases(), 60), True) == []


def test_odd_texts_end_in_a_sentence(walk: Walk) -> None:
    assert walk(sampled(texts(), 25), False) == []


@pytest.mark.slow
def test_more_values_out_of_their_range_are_refused(walk: Walk) -> None:
    assert walk(sampled(cases(), 200, seed=1), True) == []


@pytest.mark.slow
def test_more_odd_texts_end_in_a_sentence(walk: Walk) -> None:
    assert walk(sampled(texts(), 100, seed=1), False) == []


def edges() -> Iterator[tuple[str, str, float]]:
    """The ends of the ranges of methods; of whole numbers the lower ones, since the upper ones take a while."""
    long = ("steps", "squeeze_batch", "expert_batch", "expert_seed")
    for name in METHODS:
        for field, kinds in declared(methods()[name].cls).items():
            for kind in kinds:
                if isinstance(kind, Numbers) and kind.low is not None and kind.high is not None and field not in long:
                    yield name, field, kind.low if not kind.above else 1e-30
                    if not kind.whole:
                        yield name, field, kind.high if not kind.below else 0.999999


@pytest.mark.slow
def test_the_ends_of_ranges_can_be_run() -> None:
    """To the end, to a sentence, or to a run that diverges; never to a traceback, or to images that are not finite."""
    small = {"steps": 3, "real_batch": 8, "feature_passes": 1, "outer": 2, "inner": 1, "net_images": 24}
    small |= {"student_steps": 2, "max_start": 2, "expert_count": 2, "expert_epochs": 3, "expert_batch": 100}
    small |= {"squeeze_passes": 1, "candidates": 5, "bank_networks": 1, "bank_epochs": 1}
    for name, field, value in sampled(list(edges()), 30):
        hyper = {n: v for n, v in small.items() if n in declared(methods()[name].cls)} | {field: value}
        with contextlib.suppress(DatastillError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = distill(name, "digits", ipc=1, network="convnet:width=4,depth=1,norm=batch", **hyper)
            assert bool(torch.isfinite(made.images).all()), (name, field, value)


@pytest.mark.parametrize("name", METHODS)
def test_every_hyper_parameter_of_a_method_is_held_to_its_range(name: str) -> None:
    """From Python, and from a file of settings or a table over methods, which pass at the same place."""
    method = methods()[name].cls()
    for field, kinds in declared(type(method)).items():
        odd: list[Any] = [None, math.nan, math.inf, 10**400, -(10**400), object(), 1e308, "nope", True, []]
        for value in (one for one in odd if not any(one in kind for kind in kinds)):
            with pytest.raises(InputError, match=field):
                with_overrides(method, {field: value})


@pytest.mark.parametrize("name", METHODS)
def test_every_field_of_a_method_declares_what_it_may_be(name: str) -> None:
    """A number has both bounds, a word a closed set or a reader of its own; a new method gets its checks by that."""
    cls = methods()[name].cls
    assert set(declared(cls)) == {f.name for f in dataclasses.fields(cls)}
    for field, kinds in declared(cls).items():
        for kind in kinds:
            bounded = isinstance(kind, Numbers) and kind.low is not None and kind.high is not None
            assert bounded or isinstance(kind, Words) or kind in (SWITCH, TEXT), f"{name}.{field}: {kind}"
    assert with_overrides(cls(), {}) == cls(), "defaults are inside their ranges"


SPECS: dict[str, tuple[Callable[[str], object], list[type]]] = {
    "kde": (way_of, [Kernel, Extractor]),
    "loss": (way_of, [ByLoss]),
    "dfa": (DebiasedTraining.parse, [Dfa]),
    "selecmix": (DebiasedTraining.parse, [SelecMix]),
    "dfa ": (DebiasedSurrogates.parse, [Dfa, DebiasedSurrogates]),
    "idc": (lambda host: Dream(host=host), [IDC]),
    "dc": (lambda host: Dream(host=host), [DC]),
}


@pytest.mark.parametrize("name", [*SPECS, *POLICIES])
def test_options_in_texts_are_held_to_their_ranges(name: str) -> None:
    parse, owners = SPECS.get(name) or (get_policy, [type(get_policy(name))])
    for owner in owners:
        for field, kinds in declared(owner).items():
            for value in bad_values(kinds):
                if value and "," not in value:
                    with pytest.raises(InputError):
                        parse(f"{name.strip()}:{field}={value}")


def option_names(words: str) -> list[str]:
    """The names that the parser takes, those that turn a switch off among them."""
    found = options_of(words)
    return [*found, *(f"no_{name}" for name, kinds in found.items() if kinds == (SWITCH,))]


def test_option_names_never_collide() -> None:
    """A method's with those of the run, of the data and of what a run changes; nor with arguments of `distill`."""
    arguments = set(typing.get_type_hints(distill)) | set(declared(Method))
    for key, words in lines():
        names = [name.replace("-", "_") for name in option_names(words)]
        assert len(set(names)) == len(names), words
        if key == "distill":
            own = {f.name for f in dataclasses.fields(methods()[words.split()[1]].cls)}
            run = set(option_names("distill random"))
            assert not own & (arguments | run), (words, own & (arguments | run))
