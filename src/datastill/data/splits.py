"""Which parts of a source are its training and test split: decided from all names together, or by the caller.

Parts are sub-folders, parquet files or the splits of a `datasets` object. Words and separators are those that
`datasets` knows, and what it makes of the names of parquet files is made of them here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from datastill.core.errors import InputError, nearest
from datastill.data.raw import Choice, Split, Unlabeled

_KINDS = {
    "train": "train training trn",
    "test": "test testing tst eval evaluation",
    "validation": "val valid validation dev",
}
#: Kind by word, also by the word grown together with what it is a set of (trainset, testdata).
WORDS = {
    word + tail: kind
    for kind, words in _KINDS.items()
    for word in words.split()
    for tail in ("", "set", "data", "dataset", "images", "split")
}
#: Words that say nothing about what is in a folder, beside those of `WORDS`.
_FILLERS = frozenset(
    word
    for words in (
        "set sets data dataset split splits image images img imgs picture pictures photo photos sample samples",
        "folder files full all final new cropped resized original labeled labeled",
    )
    for word in words.split()
)
#: What a name says by itself, in the order of preference where several of a kind stand side by side.
_PLAIN = ("train", "training", "test", "testing", "val", "valid", "validation")
_FOLD = re.compile(r"^(?:fold|split|cv)s?[-_. ]?\d+$", re.IGNORECASE)
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
SETTLE = "--train, --test and --val (train=, test=, val=) name what is which"


def words_of(name: str) -> list[str]:
    """The words of a name in small letters: cut at separators, digits and before capitals."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return [word.lower() for word in re.findall(r"[^\W\d_]+", apart)]


def kind_of(name: str) -> str | None:
    """ "train", "test" or "validation" where a word of the name says so and none says another."""
    kinds = {WORDS[word] for word in words_of(name) if word in WORDS}
    return kinds.pop() if len(kinds) == 1 else None


def speaks_of_split(name: str) -> bool:
    """Whether a name has a word of a split, or of several."""
    return any(word in WORDS for word in words_of(name))


def rest_of(name: str) -> tuple[str, ...]:
    """The words of a name that are neither of a split nor empty of meaning."""
    return tuple(word for word in words_of(name) if word not in WORDS and word not in _FILLERS)


def is_fold(name: str) -> bool:
    """Whether a name is that of a fold of cross-validation."""
    return _FOLD.match(name) is not None


@dataclass(frozen=True)
class Decision:
    """Names of parts by what they are for."""

    train: tuple[str, ...]
    tests: tuple[tuple[str, ...], ...] = ()  #: in order of preference: the first that can be used is the test split
    left: tuple[str, ...] = ()  #: passed over
    asked: bool = False  #: whether the caller named the test split, so that no other stands in for it

    @property
    def stand_in(self) -> bool:
        """Whether nothing but a validation split can be the test split."""
        return not self.asked and bool(self.tests) and all(kind_of(name) == "validation" for name in self.tests[0])


def decide(names: Sequence[str], choice: Choice, where: object, plain: bool = True) -> Decision:
    """Splits out of the names of parquet files, or of the splits of an object, as `datasets` reads them.

    Args:
        names: of the parts.
        choice: what the caller says.
        where: the source, in errors.
        plain: whether parts of which no name speaks of a split are training data, as files are.

    Raises:
        InputError: no training split, or names that can be read in several ways.
    """
    given = chosen(names, choice, where)
    kinds = {name: kind_of(name) for name in names if name not in given.named}
    train = given.train
    if train is None:
        train = tuple(name for name, kind in kinds.items() if kind == "train")
        if not train and plain and not any(map(speaks_of_split, kinds)):
            train = tuple(kinds)
            _refuse_unread(train, where)
    if not train:
        raise InputError(f"{where} has no training split, only {listed(names)}; {SETTLE}.")
    tests = given.tests if given.tests is not None else (of_kind(kinds, "test", train),)
    if choice.val is None and choice.test is None:
        tests = (*tests, of_kind(kinds, "validation", train))
    tests = tuple(test for test in tests if test)
    used = {*train, *(name for test in tests for name in test)}
    return Decision(train, tests, tuple(n for n in names if n not in used), bool(choice.test or choice.val))


def of_kind(kinds: dict[str, str | None], kind: str, taken: Iterable[str]) -> tuple[str, ...]:
    """The names of one kind that are not taken."""
    return tuple(name for name, its in kinds.items() if its == kind and name not in taken)


@dataclass(frozen=True)
class Chosen:
    """What the caller's patterns name."""

    train: tuple[str, ...] | None
    tests: tuple[tuple[str, ...], ...] | None  #: test, then validation; None where nothing is said of them
    named: frozenset[str] = field(default_factory=frozenset)


def chosen(names: Sequence[str], choice: Choice, where: object) -> Chosen:
    """The parts that a caller names.

    Raises:
        InputError: a pattern that nothing fits, or a part that is to be two splits.
    """
    found = {
        option: tuple(dict.fromkeys(name for pattern in patterns for name in _fitting(pattern, names, option, where)))
        for option, patterns in (("train", choice.train), ("test", choice.test), ("val", choice.val))
        if patterns is not None
    }
    many = [name for part in found.values() for name in part]
    twice = next((name for name in many if many.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{twice} of {where} is named for two splits; --train, --test and --val take parts apart.")
    tests = None
    if choice.test is not None or choice.val is not None:
        kinds = {name: kind_of(name) for name in names if name not in many}
        test = found.get("test", of_kind(kinds, "test", ()) if choice.test is None else ())
        tests = tuple(part for part in (test, found.get("val", ())) if part)
    return Chosen(found.get("train"), tests, frozenset(many))


def _fitting(pattern: str, names: Sequence[str], option: str, where: object) -> list[str]:
    wanted = pattern.rstrip("/").removesuffix(".parquet")
    for known in (lambda n: n, lambda n: _SHARD.sub("", n), lambda n: n.lower()):
        fits = [name for name in names if fnmatchcase(known(name), wanted)]
        if fits:
            return fits
    raise InputError(f"{where} has nothing named {pattern!r} for --{option}. {nearest(pattern, names)}")


def best(names: Iterable[str], where: object, option: str) -> tuple[str, ...]:
    """The one of several names of a kind that says just that; () for none.

    Raises:
        InputError: none does, so that they may be parts or copies of each other.
    """
    many = tuple(names)
    if len(many) < 2:
        return many
    found = next((n for plain in _PLAIN for n in many if n.lower() == plain), None)
    if found is None:
        raise InputError(
            f"{where} has {listed(many)}, and any of them may be its {option} split; say which with --{option} "
            f"({option}=), as in --{option} {many[0]!r}, or take several: --{option} {','.join(many)!r}."
        )
    return (found,)


def _refuse_unread(names: tuple[str, ...], where: object) -> None:
    """Files of which no name speaks of a split are one set, unless they name splits of their own."""
    shards = {_SHARD.sub("", name) for name in names if _SHARD.search(name)}
    if len(shards) > 1 or (len(names) > 1 and all(is_fold(_SHARD.sub("", name)) for name in names)):
        example = _SHARD.sub("", names[0])
        raise InputError(
            f"{where} has {listed(names)}, of which no name says train or test; {SETTLE}, as in --train {example!r}."
        )


def first_usable(
    decision: Decision, read: Callable[[tuple[str, ...]], Split], notes: list[str]
) -> tuple[tuple[str, ...], Split | None]:
    """The first test split that has labels; of those that have none a note is left.

    Args:
        decision: what to try.
        read: reads parts, or raises Unlabeled.
        notes: added to.

    Raises:
        InputError: the caller named a split without labels, or one cannot be read.
    """
    for names in decision.tests:
        try:
            split = read(names)
            refuse_unlabeled(split.labels)
            return names, split
        except Unlabeled as error:
            if decision.asked:
                raise
            notes.append(f"{listed(names)} has no labels and is left out ({str(error).rstrip('.')})")
    return (), None


def refuse_unlabeled(labels: Sequence[Any]) -> None:
    """Raise where all labels are negative, as of test splits whose labels are kept back.

    Raises:
        Unlabeled: they are.
    """
    if len(labels) and all(isinstance(v, int) and v < 0 for v in labels):
        raise Unlabeled("All of its labels are negative.")


def listed(names: Iterable[str]) -> str:
    """Names for a sentence, the first six of many."""
    many = list(names)
    return ", ".join(many[:6]) + (f" and {len(many) - 6} more" if len(many) > 6 else "")


def found_note(
    train: tuple[Split, Sequence[str]], test: tuple[Split | None, Sequence[str]], left: Sequence[str], stand_in: bool
) -> tuple[str, ...]:
    """What was found, in one sentence; () where the names leave nothing to tell.

    Args:
        train, test: splits and what they were read from.
        left: what was passed over.
        stand_in: whether a validation split serves as the test split.
    """
    if not left and not stand_in and all(_is_plain(name) for name in (*train[1], *test[1])):
        return ()
    told = f"{len(set(train[0].labels))} classes, {len(train[0].labels):,} train{_source(train[1])}"
    if test[0] is not None:
        told += f", {len(test[0].labels):,} test{_source(test[1])}"
        told += " (a validation split, for want of a test split)" if stand_in else ""
    told += f"; left out: {listed(left)}" if left else ""
    return (told,)


def _is_plain(name: str) -> bool:
    return re.fullmatch(r"(train|test)(-\d+)?/?", _SHARD.sub("", name)) is not None


def _source(names: Sequence[str]) -> str:
    return f" from {listed(names)}" if names else ""
