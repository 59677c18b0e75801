"""`datastill privacy FOLDER`: what a distilled set tells of the images that it was made from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from datastill.cli.options import DeviceOptions, parse, plain_warnings
from datastill.core.ranges import Amount, Count, Few, Processes, Seed


@dataclass(frozen=True, kw_only=True)
class PrivacyOptions(DeviceOptions):
    """Which set, and how it is attacked."""

    folder: tyro.conf.Positional[Path] = field()  #: folder of a distilled set
    data: str | None = None  #: the real data that it was made from; the source that it names if none
    images: Count = 1000  #: members, and images that are none, at most
    networks: Few = 3  #: fresh networks that are trained on the set
    protocol: str = "auto"  #: how they are trained; auto takes what the set asks for
    network: str | None = None  #: architecture; the set's own if none
    shadows: Amount = 0  #: shadow sets for LiRA, an even number, each distilled anew; 0 does without
    lpips: Path | None = None  #: file of torchvision's AlexNet, for the perceptual search
    seed: Seed = 0  #: of samples, networks and shadows
    #: processes for shadows, one thread each; ray or ray:4 for those of a Ray cluster
    workers: Processes = 1
    quiet: bool = False  #: print the table only
    json: bool = False  #: print the result as JSON


def main(args: list[str]) -> int:
    """Parse and run."""
    about = "Attack a distilled set: membership by losses, LiRA with shadows, nearest real images with a control."
    options = parse(PrivacyOptions, args, "privacy", about)
    with plain_warnings(options.quiet):
        return run(options)


def run(options: PrivacyOptions) -> int:
    """Audit, print, write."""
    from datastill.apps.privacy.audit import HEADS, audit
    from datastill.apps.privacy.page import write_audit
    from datastill.cli.progress import Display
    from datastill.cli.tables import laid_out
    from datastill.evaluation.inputs import real_for
    from datastill.report.section import Shown, Table
    from datastill.store.artifact import load_distilled
    from datastill.store.hub import refuse_hub

    display = Display(options.quiet or options.json)
    refuse_hub(options.folder, "What was found is written")
    made = load_distilled(options.folder)
    real = real_for(made, options.data)
    with display.bars():
        found = audit(
            made,
            real,
            images=options.images,
            networks=options.networks,
            protocol=options.protocol,
            network=options.network,
            shadows=options.shadows,
            lpips=options.lpips,
            seed=options.seed,
            out=options.folder / "shadows" if options.shadows else None,
            workers=options.workers,
            device=options.device,
            progress=display.update,
        )
    write_audit(options.folder, found, made, real)
    if options.json:
        print(json.dumps(found.to_dict(), indent=2))
        return 0
    for part in laid_out(Shown("Membership", [Table(HEADS, found.rows())])):
        if isinstance(part, str):
            print(part)
        else:
            display.table(part)
    for look in found.visual:
        print(
            f"Nearest training image over nearest held-out image ({look.by}): {look.ratio:.3f}; copies: {look.copies}."
        )
    print(found.verdict)
    display.say(f"Written to {options.folder}: privacy.json and privacy.html.")
    return 0
