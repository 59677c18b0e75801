"""How the sub-folders of a folder are to be read: as classes, or as splits that hold the classes.

It is decided from all of them together, names and what lies in them, so that a class may bear a split's name. What can
be read in two ways is refused, with the option that settles it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datastill.core.errors import InputError
from datastill.data.inside import Links, is_inside
from datastill.data.parts import Part, is_image, visible
from datastill.data.raw import Choice, Request, Unlabeled
from datastill.data.splits import SETTLE, Decision, best, chosen, is_fold, kind_of, listed, rest_of, words_of

#: Words of what lies beside a training split and is no class.
_BESIDE = {
    "extra",
    "additional",
    "pred",
    "prediction",
    "predictions",
    "unlabeled",
    "unsupervised",
    "submission",
}
HERE = "."  #: as --train: the folder itself is the training split, and every sub-folder a class


@dataclass(frozen=True)
class Layout:
    """What is to be read as what."""

    root: Path
    parts: Mapping[str, Part]
    decision: Decision
    train: tuple[Path, ...]  #: the class folders of the training split
    notes: tuple[str, ...] = ()

    def classes(self, names: Sequence[str]) -> tuple[Path, ...]:
        """The class folders of parts that are to be a test split.

        Raises:
            Unlabeled: they have none, or none of a class that training has.
        """
        found = _class_folders([self.parts[name] for name in names])
        if not {path.name for path in found} & {path.name for path in self.train}:
            raise Unlabeled(f"{listed(path.name for path in found)} is no class that training images have.")
        return found

    def folder_of(self, classes: Sequence[Path]) -> Path:
        """The folder that class folders lie in."""
        above = {path.parent for path in classes}
        return above.pop() if len(above) == 1 else self.root

    @property
    def passed(self) -> list[Path]:
        """Images that lie beside the class folders of the training split."""
        return [path for path in visible(self.folder_of(self.train)) if is_image(path) and path.is_file()]


def _class_folders(parts: Sequence[Part]) -> tuple[Path, ...]:
    folders: list[Path] = []
    for part in parts:
        inner = part.unwrapped().path
        found = [child for child in visible(inner) if child.is_dir()]
        if not found or not part.below:
            loose = sum(is_image(child) for child in visible(inner))
            what = f"{loose} images but no class sub-folders" if loose else "no class sub-folders with images"
            raise Unlabeled(f"{inner} has {what}; put the images of each class into a folder of its own.")
        folders += found
    return tuple(folders)


def layout_of(root: Path, request: Request) -> Layout:
    """How a folder is to be read.

    Raises:
        InputError: no class folders, no training split, or sub-folders that can be read in two ways.
    """
    links, choice = Links(root, request.follow_links), request.choice
    parts = {path.name: Part(path, links) for path in visible(root) if path.is_dir()}
    parts |= {name: Part(root / name, links) for name in _deeper(root, choice)}
    here = HERE in (choice.train or ())
    given = chosen(list(parts), Choice(train=None if here else choice.train, test=choice.test, val=choice.val), root)
    rest = {name: part for name, part in parts.items() if name not in given.named and "/" not in name}
    links.inside(part.path for name, part in rest.items() if kind_of(name))
    links.refuse()  # a split is not looked into through a link that leads out
    notes: tuple[str, ...] = ()
    train = given.train
    if train is None and not here:
        train, notes = _found_train({name: part for name, part in rest.items() if part.holds}, root)
    if train is None:
        classes = tuple(part.path for part in rest.values())
        if not classes:
            classes = _class_folders([Part(root, links)])
        decision = Decision((), given.tests or (), (), bool(given.tests))
        return Layout(root, parts, decision, classes, notes)
    classes = _class_folders([parts[name] for name in train])
    if given.train is None:
        _refuse_groups([Part(path, links) for path in classes], parts[train[0]].unwrapped().path)
    tests = given.tests if given.tests is not None else _found_tests(rest, train, root)
    used = {*train, *(name for test in tests for name in test)}
    left = tuple(name for name, part in rest.items() if name not in used and part.holds)
    return Layout(root, parts, Decision(train, tests, left, bool(given.tests)), classes, notes)


def _deeper(root: Path, choice: Choice) -> list[str]:
    """Folders further down that the caller names by their path."""
    named = (*(choice.train or ()), *(choice.test or ()), *(choice.val or ()))
    paths = (name.strip("/") for name in named if "/" in name.strip("/"))
    return [path for path in paths if (root / path).is_dir() and is_inside(root / path, (root.resolve(),))]


def _found_train(held: Mapping[str, Part], root: Path) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The part that is the training split, None where the parts are classes; and notes."""
    splits = {name: kind for name in held if (kind := _split_kind(name, held, root))}
    deep = {name: kind for name, kind in splits.items() if held[name].below}
    if not deep:
        _refuse_doubtful(held, root)
        _refuse_flat(splits, held, root)
        _refuse_groups(list(held.values()), root)
        return None, tuple(f"{name}/ is read as a class: it holds images and no class folders" for name in splits)
    train = best((name for name, kind in deep.items() if kind == "train"), root, "train")
    if not train:
        raise InputError(f"{root} has no training split among {_slashed(held)}; {SETTLE}{_or_classes(held)}.")
    strange = [name for name in held if name not in splits and not _BESIDE & set(words_of(name))]
    if any(kind != "train" for kind in splits.values()):  # two splits prove it, unless there is more of their classes
        strange = [name for name in strange if _share_classes(held[name], held[train[0]])]
    if strange:
        raise InputError(
            f"{root} has {train[0]}/, which reads as a training split, beside {_slashed(strange)}, which does not fit "
            f"that; say --train {train[0]} to leave the rest out{_or_classes(held)}."
        )
    return train, ()


def _share_classes(one: Part, other: Part) -> bool:
    names = [{child.name for child in part.unwrapped().below} for part in (one, other)]
    return bool(names[0] & names[1])


def _found_tests(rest: Mapping[str, Part], train: Sequence[str], root: Path) -> tuple[tuple[str, ...], ...]:
    """Test and validation splits among the parts; those with class folders before others of their kind."""
    held = {name: part for name, part in rest.items() if part.holds and name not in train}
    every = {**held, **{name: rest[name] for name in train if name in rest}}
    kinds = {name: _split_kind(name, every, root) for name in held}
    found = []
    for kind, option in (("test", "test"), ("validation", "val")):
        names = [name for name, its in kinds.items() if its == kind]
        deep = [name for name in names if held[name].below]
        found.append(best(deep, root, option) if deep else tuple(names))
    return tuple(names for names in found if names)


def _split_kind(name: str, held: Mapping[str, Part], root: Path) -> str | None:
    """What split a part is of by its name: one that says no more, or says the same more as a part of another kind."""
    kind, rest = kind_of(name), rest_of(name)
    if kind is None or not rest or len(held) == 1 or set(rest) <= set(words_of(root.name)):
        return kind
    partners = (other for other in held if kind_of(other) not in (None, kind) and rest_of(other) == rest)
    return kind if next(partners, None) is not None else None


def _refuse_doubtful(held: Mapping[str, Part], root: Path) -> None:
    """A name that may be that of a split, with class folders or folders of a class in it."""
    found = [name for name, part in held.items() if kind_of(name) and len(part.unwrapped().below) > 1]
    if found and len(held) > 1:
        raise InputError(
            f"{root} has {_slashed(found)}, which may be splits or classes; {SETTLE}, as in --train {found[0]!r}"
            f"{_or_classes(held)}."
        )


def _refuse_flat(splits: Mapping[str, str], held: Mapping[str, Part], root: Path) -> None:
    """Splits by name that hold images and no class folders; one alone among others is a class."""
    if len(held) == 1 and not splits:
        (only,) = held.values()
        if len(only.below) > 1 and not only.loose:
            raise InputError(
                f"{root} has one folder with images, {only.name}, and that has {_slashed(p.name for p in only.below)}; "
                f"give {only.path}."
            )
    folds = len(held) > 1 and all(is_fold(name) for name in held)
    if folds and all(part.loose for part in held.values()):
        raise InputError(f"{root} has the folds {_slashed(held)} without class folders{_or_classes(held)}.")
    if splits and (len(splits) == len(held) or ("train" in splits.values() and len(set(splits.values())) > 1)):
        images = sum(is_image(path) for name in splits for path in visible(held[name].path))
        raise InputError(
            f"{root} has {_slashed(splits)}, which read as splits, with {images} images but no class sub-folders; put "
            f"the images of each class into a folder of its own{_or_classes(held)}."
        )


def _refuse_groups(parts: Sequence[Part], root: Path) -> None:
    """Folders that hold the same folders are no classes but folds, domains or groups, or hold splits themselves."""
    if len(parts) < 2 or any(part.loose for part in parts):
        return
    names = [{child.name for child in part.below} for part in parts]
    counts = Counter(name for below in names for name in below)
    shared = [sum(counts[name] > 1 for name in below) for below in names]
    if not all(here >= 2 and here * 2 >= len(below) for here, below in zip(shared, names)):
        return
    outer = [part.name for part in parts]
    inner = sorted(name for name, count in counts.items() if count > 1)
    if {"train", "test"} <= {kind_of(name) for name in inner} or {"train", "validation"} <= set(map(kind_of, inner)):
        told = "so that training and test images of a class lie in one; put train/ and test/ above the classes"
    else:
        last = f" --test {outer[-1]}" if len(outer) > 2 or all(map(is_fold, outer)) else ""
        first = ",".join(outer[:-1] if last else outer) if len(outer) < 7 else f"{outer[0]},..."
        told = f"as folds, groups or domains do; {SETTLE}, as in --train {first}{last}"
    raise InputError(
        f"{root} has {_slashed(outer)} with the same folders in each ({_slashed(inner)}), {told}{_or_classes(outer)}."
    )


def _or_classes(names: Iterable[str]) -> str:
    return f" (or --train {HERE} if {_slashed(names)} are the classes)"


def _slashed(names: Iterable[str]) -> str:
    return listed(f"{name}/" for name in names)
