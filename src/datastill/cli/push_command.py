"""`datastill push RUN NAME`."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from datastill.cli.options import parse, plain_warnings


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """What to publish and as what."""

    folder: tyro.conf.Positional[Path]  #: folder of a distilled set
    name: tyro.conf.Positional[str]  #: NAME/SET on the Hub, such as me/cifar10-dm-ipc10
    data_license: str = ""  #: license of the real images, as their owner names it, such as cc-by-4.0; else unknown
    private: bool = False  #: a new repository is seen by its owner alone
    overwrite: bool = False  #: replace a distilled set that has this name; nothing else is ever replaced
    quiet: bool = False  #: say nothing but errors
    json: bool = False  #: print what was done as JSON


def main(args: list[str]) -> int:
    """Parse and run."""
    options = parse(PushOptions, args, "push", "Publish a distilled set on the Hugging Face Hub.")
    with plain_warnings(options.quiet):
        return push(options)


def push(options: PushOptions) -> int:
    """Publish, and say what."""
    from datastill.cli.progress import Display
    from datastill.exchange.hub import push_to_hub
    from datastill.exchange.repository import EVALUATION
    from datastill.store.artifact import load_distilled
    from datastill.store.sizes import bytes_in_words

    display = Display(options.quiet or options.json)
    distilled = load_distilled(options.folder)
    start = time.perf_counter()
    done = push_to_hub(
        distilled,
        options.name,
        license=options.data_license,
        private=options.private,
        overwrite=options.overwrite,
    )
    seconds = time.perf_counter() - start
    if options.json:
        print(json.dumps({**asdict(done), "seconds": round(seconds, 3)}, indent=2))
        return 0
    size = bytes_in_words(sum(done.bytes.values()))
    display.say(f"Published as {done.url}: {len(done.bytes)} files, {size}, in {seconds:.1f} s.")
    if done.hidden:
        display.say(f"Places on this machine were left out of {', '.join(done.hidden)}; the tensors are as they were.")
    if EVALUATION not in done.bytes:
        display.say(f"The card has no scores: datastill evaluate {options.folder}, then push again with --overwrite.")
    if not options.data_license:
        display.say("The card says that the license of the real images is unknown; --data-license names it.")
    display.say(f'Load it: load_distilled("hub:{done.name}"), or datasets.load_dataset("{done.name}").')
    return 0
