"""Publish a distilled set on the Hugging Face Hub, and get one from there."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from datastill.core.errors import InputError
from datastill.exchange.repository import copy_file, set_files, write_repository
from datastill.store.artifact import MANIFEST, DistilledSet, load_distilled
from datastill.store.files import read_json
from datastill.store.folders import refuse_taken, whole_folder
from datastill.store.hub import (
    SCHEME,
    SHOWN,
    Listed,
    fetched,
    hub_errors,
    hub_name,
    is_of_set,
    listing,
    reachable,
    refuse_no_name,
    silent_bars,
    unreachable,
)
from datastill.store.manifest import refuse_other_format
from datastill.store.opening import sound_path
from datastill.store.outputs import refuse_out

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

#: What the Hub itself puts into a new repository.
_OF_THE_HUB = (".gitattributes",)


@dataclass(frozen=True)
class Pushed:
    """What was published.

    Attributes:
        name: NAME/SET.
        url: of its page.
        commit: of this state; "hub:NAME/SET@COMMIT" loads it whatever comes after.
        bytes: of each file, by name.
        hidden: texts that places on this machine were left out of, by name.
    """

    name: str
    url: str
    commit: str
    bytes: dict[str, int]
    hidden: tuple[str, ...]


def push_to_hub(
    distilled: DistilledSet, name: str, *, license: str = "", private: bool = False, overwrite: bool = False
) -> Pushed:
    """Publish a set on the Hugging Face Hub, for `load_distilled("hub:NAME/SET")` and `datasets.load_dataset`.

    The files of the set keep their bytes; scores that `evaluate` left beside it are published with it. Where data lie
    on this machine is left out. One commit holds all of it, so the repository has the whole set or none.

    Args:
        distilled: the set. Where it has a folder, what lies there is published.
        name: NAME/SET.
        license: of the real images, as their owner names it, such as "cc-by-4.0"; "" says that it is unknown.
        private: whether a new repository is seen by its owner alone.
        overwrite: replace a distilled set that has this name; nothing else is ever replaced.

    Raises:
        InputError: no such name can be; it is taken; there is no token, or none that may write there; the Hub does not
            answer.
    """
    refuse_no_name(name)
    with hub_errors(name), silent_bars(), tempfile.TemporaryDirectory() as temporary:
        _refuse_no_token()
        if not reachable():
            raise unreachable()
        there = _there(name, overwrite)
        if private and there is not None and not there.private:
            raise InputError(f"{name} on the Hub is public already; make it private there, or choose another name.")
        folder = Path(temporary)
        hidden = write_repository(folder, distilled, license, f"{SCHEME}{name}")
        return _published(name, folder, there, private, hidden, distilled.name)


def _refuse_no_token() -> None:
    from huggingface_hub import get_token

    if get_token() is None:
        raise InputError(
            "There is no token of the Hub on this machine; sign in with `hf auth login`, or set HF_TOKEN to one that "
            "may write."
        )


def _there(name: str, overwrite: bool) -> Listed | None:
    """What has the name already, where it may be replaced; None where nothing has it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import RepositoryNotFoundError

    try:
        there = listing(name)
    except RepositoryNotFoundError:
        return None
    if not set(there.sizes) - set(_OF_THE_HUB):
        return there
    if MANIFEST in there.sizes:
        manifest = hf_hub_download(name, MANIFEST, repo_type="dataset", revision=there.commit)
        try:
            refuse_other_format(read_json(Path(manifest)), "")
        except InputError:
            pass
        else:
            if overwrite:
                return there
            raise InputError(
                f"There is a distilled set {name} on the Hub already; choose another name, or add --overwrite "
                "(overwrite=True) to replace it. Its history keeps what was there."
            )
    raise InputError(f"{name} on the Hub holds something that is no distilled set, and stays; choose another name.")


def _published(
    name: str, folder: Path, there: Listed | None, private: bool, hidden: tuple[str, ...], title: str
) -> Pushed:
    from huggingface_hub import HfApi

    api = HfApi()
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    sizes = {file: path.stat().st_size for file, path in files.items()}
    if there is None:
        api.create_repo(name, repo_type="dataset", private=private)
    old = set() if there is None else {file for file in there.sizes if _of_a_push(file)} - set(files)
    commit = api.create_commit(
        name,
        list(_operations(files, old)),
        commit_message=f"{title}, by datastill",
        repo_type="dataset",
        parent_commit=None if there is None else there.commit,
    )
    return Pushed(name, f"{api.endpoint}/datasets/{name}", commit.oid, sizes, hidden)


def _of_a_push(file: str) -> bool:
    """Whether a push wrote it, by its name: files that somebody added beside a set stay."""
    return is_of_set(file) or file in SHOWN or fnmatch(file, "data/*.parquet")


def _operations(files: dict[str, Path], old: Iterable[str]) -> Iterable[CommitOperationAdd | CommitOperationDelete]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    for file, path in files.items():
        yield CommitOperationAdd(file, path)
    for file in sorted(old):
        yield CommitOperationDelete(file)


def pull_from_hub(name: str, out: str | Path) -> DistilledSet:
    """Get a distilled set from the Hub into a folder of its own, which appears whole or not at all.

    Its view as parquet is left where it is.

    Args:
        name: NAME/SET or "hub:NAME/SET", with "@REVISION" behind it or not.
        out: a new or empty folder.

    Raises:
        InputError: there is no such set, it is none of ours, it is damaged, or of a newer datastill; the Hub does not
            answer and there is no copy; the folder cannot be written or is not empty.
    """
    source = f"{SCHEME}{name.removeprefix(SCHEME)}"
    hub_name(source)
    target = sound_path(out)
    refuse_taken(target)
    refuse_out(target)
    folder, told = fetched(source, SHOWN)
    if told:
        warnings.warn(told, stacklevel=2)
    load_distilled(folder)  # refused before anything is written
    with whole_folder(target) as temporary:
        for file in (*set_files(folder), *(shown for shown in SHOWN if (folder / shown).is_file())):
            (temporary / file).parent.mkdir(exist_ok=True)
            copy_file(folder / file, temporary / file)
    return load_distilled(target)
