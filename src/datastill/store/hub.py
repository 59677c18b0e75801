"""Distilled sets on the Hugging Face Hub: their names, what is fetched of them, and what can go wrong on the way.

Only files of ours are fetched, into the Hub's own cache, and only once their sizes are known. What was fetched is then
read, and checked, as any folder is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from datastill.core.errors import InputError
from datastill.store.files import read_json
from datastill.store.manifest import MANIFEST, refuse_other_format
from datastill.store.opening import LARGEST_JSON

SCHEME = "hub:"
#: What may be asked of the Hub at all; it has rules of its own beside.
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
#: Files of a distilled set, by their names in the repository: the set, what belongs beside it, its scores.
_SET = re.compile(
    r"manifest\.json|synthetic\.safetensors|decoder\.safetensors|evaluation\.json|"
    r"teacher(-\d{1,3})?/teacher\.(json|safetensors)|labels/(bank\.json|\w{1,40}\.npy)"
)
#: What people look at.
SHOWN = ("README.md", "preview.png")
#: Bytes of all files of a set, banks of labels and teachers among them.
MOST_BYTES = 16 << 30
CONNECT_SECONDS = 5.0  #: how long an answer of the Hub is waited for; its client would try again for half a minute


@dataclass(frozen=True)
class Listed:
    """A repository at one state.

    Attributes:
        commit: of that state.
        sizes: bytes of every file in it, by name; None where the Hub does not say.
        private: whether its owner alone sees it.
    """

    commit: str
    sizes: Mapping[str, int | None]
    private: bool = False


def hub_name(source: object) -> str | None:
    """NAME/SET, or NAME/SET@REVISION, of "hub:NAME/SET"; None for whatever is no such text.

    Raises:
        InputError: it begins so and is no name that the Hub can have.
    """
    text = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
    if not isinstance(text, str) or not text.startswith(SCHEME):
        return None
    name = text.removeprefix(SCHEME)
    refuse_no_name(name.partition("@")[0])
    return name


def refuse_no_name(name: str) -> None:
    """Refuse what cannot be a name on the Hub.

    Raises:
        InputError: it cannot.
    """
    if not _NAME.fullmatch(name) or ".." in name or "--" in name or name.endswith((".git", ".", "-")):
        raise InputError(f"{name[:80]!r} is no name of a set on the Hub; it is NAME/SET, such as me/cifar10-dm-ipc10.")


def refuse_hub(folder: str | Path, what: str) -> None:
    """Refuse a set of the Hub where something is to be written beside the set.

    Args:
        folder: of the set; "hub:NAME/SET", or where such a set is kept.
        what: is written.

    Raises:
        InputError: it is one; how to get a folder of it is told.
    """
    name = hub_name(folder)
    if name is None and is_kept(Path(folder)):
        name = "/".join(Path(folder).parent.parent.name.split("--")[1:])
    if name is not None:
        raise InputError(f"{what} beside the set, so get a folder of it first: datastill pull {name}")


def is_kept(folder: Path) -> bool:
    """Whether a folder is where the Hub's client keeps one state of a data set, as links to files beside it."""
    return folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("datasets--")


def is_of_set(name: str) -> bool:
    """Whether a file of a repository is part of a distilled set, by its name."""
    return _SET.fullmatch(name) is not None


class Fetched(NamedTuple):
    """The files of a set of the Hub.

    Attributes:
        folder: of the Hub's cache.
        told: where they are not what the Hub has now, as far as is known: a sentence; else "".
    """

    folder: Path
    told: str = ""


def fetched(source: str | Path, also: tuple[str, ...] = ()) -> Fetched:
    """The files of a set of the Hub, in a folder of its cache; where it does not answer, those of the last time.

    Args:
        source: "hub:NAME/SET", with "@REVISION" behind it or not.
        also: further files to fetch, where they are there.

    Raises:
        InputError: there is no such set, it is none of ours or of a newer datastill, or it cannot be had.
    """
    from huggingface_hub import snapshot_download

    name, _, revision = str(hub_name(source)).partition("@")
    asked: dict[str, Any] = {"repo_type": "dataset", "revision": revision or "main"}
    with hub_errors(name), silent_bars():
        if not reachable():
            return _kept(name, asked)
        for _ in range(3):  # the repository may change between the two
            listed = listing(name, asked["revision"])
            wanted = _wanted(name, listed, also)
            folder = Path(snapshot_download(name, allow_patterns=wanted, **asked))
            if folder.name == listed.commit:
                return Fetched(folder)
    raise InputError(f"{SCHEME}{name} is changing just now; try again in a minute.")


def _kept(name: str, asked: Mapping[str, Any]) -> Fetched:
    """What was fetched before."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import LocalEntryNotFoundError

    with contextlib.suppress(LocalEntryNotFoundError):
        folder = Path(snapshot_download(name, local_files_only=True, allow_patterns=[MANIFEST], **asked))
        if (folder / MANIFEST).is_file():
            return Fetched(folder, f"{_why_not()}: {SCHEME}{name} is a copy from before, {folder.name[:12]}.")
    raise unreachable(f", and there is no copy of {SCHEME}{name} here")


def _wanted(name: str, listed: Listed, also: tuple[str, ...]) -> list[str]:
    """Files of ours, once the manifest says that there are any and their sizes are sound."""
    from huggingface_hub import hf_hub_download

    where = f"{SCHEME}{name}"
    if MANIFEST not in listed.sizes:
        raise InputError(
            f"{where} is no distilled set of datastill (it has no {MANIFEST}); to read it as real data, give its name "
            f"alone: --data {name}"
        )
    wanted = [file for file in listed.sizes if is_of_set(file) or file in also]
    refuse_sizes(where, listed, wanted)
    _refuse_large(f"{MANIFEST} of {where}", listed.sizes[MANIFEST] or 0, LARGEST_JSON)
    manifest = hf_hub_download(name, MANIFEST, repo_type="dataset", revision=listed.commit)
    refuse_other_format(read_json(Path(manifest)), f"{MANIFEST} of {where}")
    return wanted


def refuse_sizes(where: str, listed: Listed, wanted: Collection[str]) -> None:
    """Refuse files that the Hub does not tell the size of, or that are too large together.

    Raises:
        InputError: one of the two.
    """
    unknown = next((file for file in wanted if listed.sizes[file] is None), None)
    if unknown is not None:
        raise InputError(f"The Hub does not say how large {unknown} of {where} is, so it is not fetched.")
    _refuse_large(where, sum(listed.sizes[file] or 0 for file in wanted), MOST_BYTES)


def _refuse_large(what: str, size: int, most: int) -> None:
    if size > most:
        raise InputError(f"{what} has {size / 1e6:,.0f} MB, and at most {most / 1e6:,.0f} MB are fetched.")


def listing(name: str, revision: str = "main", model: bool = False) -> Listed:
    """What a data set or a model of the Hub holds, without fetching any of it."""
    from huggingface_hub import HfApi

    ask = HfApi().model_info if model else HfApi().dataset_info
    found = ask(name, revision=revision, files_metadata=True)
    sizes = {one.rfilename: one.size for one in found.siblings or ()}
    return Listed(str(found.sha), sizes, bool(found.private))


@contextlib.contextmanager
def silent_bars() -> Iterator[None]:
    """Without the bars of the Hub's client, which know nothing of `--quiet`."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def reachable() -> bool:
    """Whether the Hub answers at all; behind a proxy only its client can tell, and the answer is yes."""
    import huggingface_hub.constants as known

    if known.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    url = urlsplit(known.ENDPOINT)
    try:
        port = url.port or (80 if url.scheme == "http" else 443)
        socket.create_connection((url.hostname or known.ENDPOINT, port), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def unreachable(more: str = "") -> InputError:
    """The sentence for a Hub that does not answer."""
    return InputError(f"{_why_not()}{more}; check the connection and try again.")


def _why_not() -> str:
    import huggingface_hub.constants as known

    why = "is switched off (HF_HUB_OFFLINE)" if known.HF_HUB_OFFLINE else f"({known.ENDPOINT}) does not answer"
    return f"The Hub {why}"


@contextlib.contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Whatever the Hub and its client raise about a set, as one sentence.

    Raises:
        InputError: something went wrong.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        told = _told(name, error)
        if told is None:
            raise
        raise told from error


def _told(name: str, error: Exception) -> InputError | None:
    from huggingface_hub.utils import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    where = f"{SCHEME}{name}"
    if isinstance(error, RepositoryNotFoundError):
        return InputError(
            f"The Hub has no data set or model {name} that you may read; check the name, or sign in with "
            "`hf auth login` where it is private."
        )
    if isinstance(error, RevisionNotFoundError):
        return InputError(f"{where} has no such state: {str(error).splitlines()[0][:120]}")
    if isinstance(error, HfHubHTTPError) and error.response is not None:  # older clients raise one without an answer
        return _refused(name, error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
        return InputError(f"{where} cannot be written to {error.filename}: {error.strerror}.")
    of_network = type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "requests", "urllib3")
    if of_network or isinstance(error, ConnectionError | TimeoutError | OSError | RuntimeError):
        return unreachable(f" as it should ({' '.join(str(error).split())[:120]})")
    if isinstance(error, ValueError):
        return InputError(f"The Hub takes {name} not as it is: {' '.join(str(error).split())[:200]}")
    return None


def _refused(name: str, error: Any) -> InputError:
    """By the status of an answer."""
    status = error.response.status_code
    said = " ".join((error.server_message or "").split())[:200]
    if status in (401, 403):
        return InputError(
            f"The Hub refuses your token for {name} ({status}); sign in with `hf auth login`, or set HF_TOKEN to one "
            "that may write there."
        )
    if status in (409, 412):
        return InputError(f"{name} was changed by somebody else just now ({said or status}); try again.")
    return InputError(f"The Hub answered {status} to what was asked of {name}{': ' + said if said else ''}.")
