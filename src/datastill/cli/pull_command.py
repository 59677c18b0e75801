"""`datastill pull NAME`."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import tyro

from datastill.cli.options import parse, plain_warnings


@dataclass(frozen=True, kw_only=True)
class PullOptions:
    """What to get and where to."""

    name: tyro.conf.Positional[str]  #: NAME/SET on the Hub; NAME/SET@REVISION is one state of it
    out: Path | None = None  #: a new folder for it; none takes runs/SET
    quiet: bool = False  #: say nothing but errors
    json: bool = False  #: print the manifest as JSON


def main(args: list[str]) -> int:
    """Parse and run."""
    options = parse(PullOptions, args, "pull", "Get a distilled set from the Hugging Face Hub.")
    with plain_warnings(options.quiet):
        return pull(options)


def pull(options: PullOptions) -> int:
    """Get it, and say what it is."""
    from datastill.cli.progress import Display
    from datastill.exchange.hub import pull_from_hub
    from datastill.report import words

    display = Display(options.quiet or options.json)
    out = options.out or Path("runs") / options.name.partition("@")[0].rpartition("/")[2]
    distilled = pull_from_hub(options.name, out)
    if options.json:
        print(json.dumps(distilled.manifest, indent=2))
        return 0
    display.say(f"{distilled.name}: {words.images(distilled)}, {words.weighs(distilled)}. Written to {out}.")
    source = distilled.record.data.source
    data = [] if source and not source.startswith("path/to/") else ["--data", "REAL_DATA"]
    display.say(f"Score it: {shlex.join(['datastill', 'evaluate', str(out), *data])}")
    return 0
