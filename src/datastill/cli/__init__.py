"""The command `datastill`. Commands import what they need when they run, so that `--help` answers at once."""

from __future__ import annotations

import errno
import importlib
import os
import random
import sys

from datastill._version import __version__
from datastill.cli.streams import lenient_streams
from datastill.cli.torchrun import is_rank, run_as_rank, speaks
from datastill.core.errors import DatastillError, InputError, Interrupted, nearest
from datastill.core.interrupt import exit_code, stopped_by_signals, was_stopped

COMMANDS = {
    "demo": "Distill the digits to one image per class in a minute, beside a random selection.",
    "distill": "Learn a small synthetic training set from your data.",
    "evaluate": "Score distilled sets on test data, with Random beside them.",
    "compare": "One table over methods, sizes and seeds, with intervals, paired to Random, resumable.",
    "frontier": "Accuracy against the time that a set costs, for many methods at several budgets, as a figure.",
    "weigh": "Weigh images against a bias, and show the crowd of each class and its odd ones.",
    "study": "Measure what weights against a bias do, over methods, sizes and seeds.",
    "federated": "Train on data that stay with several clients, and count what travels and what it tells.",
    "privacy": "Attack a distilled set: what it tells of the images that it was made from.",
    "continual": "Let classes arrive in steps, remember each as a few distilled images, train on the memory alone.",
    "nas": "Train many networks on distilled sets and on the whole set, and compare the two rankings.",
    "backdoor": "Distill a set from poisoned images: is it as good, does the trigger work, would it be noticed?",
    "leak": "Recover labels and images from gradients at single images: what sharing a gradient tells.",
    "attribute": "Explain a network against distilled images of coarse classes, beside the usual baselines.",
    "results": "Print measured results beside the published numbers.",
    "estimate": "Tell minutes and memory of a run before it starts.",
    "teacher": "Train, import or inspect the network that decoupled methods recover images from.",
    "experts": "Train, inspect or import the expert trajectories that trajectory matching needs.",
    "relabel": "Store a teacher's labels beside a distilled set, so that training on it needs no teacher.",
    "methods": "List the methods, or show one with every hyper-parameter and its published settings.",
    "data": "Show what is understood of real data before anything is done with it: splits, classes, sizes, pixels.",
    "inspect": "Show what a distilled set holds and how it was made.",
    "export": "Write a distilled set as image folders, parquet or a plain pair of tensors.",
    "push": "Publish a distilled set on the Hugging Face Hub, with a card and a view that other tools read.",
    "pull": "Get a distilled set from the Hugging Face Hub, and check it.",
    "import": "Make a set that others released as .pt one that can be scored.",
}


def main(argv: list[str] | None = None) -> int:
    """Run a command; the return value is the exit code (2 for bad input)."""
    with lenient_streams():
        return _main(list(sys.argv[1:] if argv is None else argv))


def _main(args: list[str]) -> int:
    state = random.getstate()  # rich draws from Python's global generator when it is imported
    try:
        with stopped_by_signals():
            return _run(args)
    except Interrupted as stop:
        return _ended(stop, exit_code())
    except DatastillError as error:
        return _ended(error, error.exit_code)
    except KeyboardInterrupt:
        return _stopped()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        _tell(f"datastill: {str(error.filename)[:80]}... is too long for a path; choose a shorter one.")
        return InputError.exit_code
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2 if stop.code else 0
    except Exception:  # an import that is stopped half-way may raise anything
        if not was_stopped():
            raise
        return _stopped()
    finally:
        random.setstate(state)


def _ended(error: DatastillError, code: int) -> int:
    if speaks(error):
        _tell(f"datastill: {error}")
    return code


def _stopped() -> int:
    _tell("datastill: stopped; the same command (distill: with --resume) goes on.")
    return exit_code()


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _run(args: list[str]) -> int:
    strange = next((arg for arg in args if any("\ud800" <= letter <= "\udfff" for letter in arg)), None)
    if strange is not None:
        shown = os.fsencode(strange).decode("utf-8", "backslashreplace")
        raise InputError(f"{shown} holds bytes that are no UTF-8, which records of it cannot name; rename it.")
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if args[0] in ("-V", "--version"):
        print(f"datastill {__version__}")
        return 0
    command, rest = args[0], args[1:]
    if command not in COMMANDS:
        raise InputError(f"There is no command {command!r}. {nearest(command, COMMANDS)}")
    if not {"-h", "--help"} & set(rest):
        _refuse_no_temporary_folder()
    work = lambda: int(importlib.import_module(f"datastill.cli.{command}_command").main(rest) or 0)  # noqa: E731
    return run_as_rank(command, work) if is_rank() else work()


def _refuse_no_temporary_folder() -> None:
    """torch and matplotlib end without one, the latter when the work is done."""
    import tempfile

    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise InputError(f"{error.strerror}; set TMPDIR to a folder that can be written.") from error


def usage() -> str:
    """What `datastill --help` prints."""
    lines = "\n".join(f"  {name:<9} {text}" for name, text in COMMANDS.items())
    return (
        "usage: datastill COMMAND [options]\n\n"
        "Dataset distillation: a tiny synthetic training set, and honest numbers about it.\n\n"
        f"commands:\n{lines}\n\n"
        "`datastill COMMAND --help` shows a command's options. Start with `datastill demo`, then\n"
        "`datastill distill dm --data YOUR_FOLDER --ipc 10 --out runs/mine`."
    )
