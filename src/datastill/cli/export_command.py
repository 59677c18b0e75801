"""`datastill export FOLDER TARGET`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from datastill.cli.options import parse, plain_warnings, refuse_void
from datastill.core.ranges import Amount, Bits, Few

if TYPE_CHECKING:
    from datastill.cli.progress import Display
    from datastill.store.artifact import DistilledSet


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to write and where."""

    folder: tyro.conf.Positional[Path]  #: folder of a distilled set
    target: tyro.conf.Positional[Path]  #: folder to write
    #: imagefolder (PNG; of pairs with a captions file), parquet (as the Hub takes it), tensors (exact), encoded (a
    #: distilled set in fewer bytes), or hub (what `datastill push` publishes)
    to: Literal["imagefolder", "parquet", "tensors", "encoded", "hub"] = "imagefolder"
    bits: Bits = 8  #: of a value, with --to encoded
    most: Amount = 0  #: bytes that encoded images may take, with as many bits as fit, up to --bits; 0 sets no limit
    #: steps to round encoded values so that networks see less of it; 300 are enough, 0 is the nearest
    refine: Amount = 0
    data_license: str = ""  #: with --to hub, license of the real images, such as cc-by-4.0; else unknown
    score: bool = True  #: where pixels are rounded, score the set before and after
    data: str | None = None  #: real data to score on; none takes the source that the set names
    network: str | None = None  #: architecture for the scores; none takes that of the set, if that is built in
    networks: Few = 3  #: fresh networks for the scores
    quiet: bool = False  #: say nothing but errors
    json: bool = False  #: print what was done as JSON


def main(args: list[str]) -> int:
    """Parse and run."""
    options = parse(ExportOptions, args, "export", "Write a distilled set in a form that other tools read.")
    with plain_warnings(options.quiet):
        return write(options)


def write(options: ExportOptions) -> int:
    """Export, then score what was written if it lost precision."""
    from datastill.cli.progress import Display
    from datastill.exchange.export import export
    from datastill.report.card import CARD, PICTURE
    from datastill.store.artifact import load_distilled

    _refuse_void(options)
    display = Display(options.quiet or options.json)
    distilled = load_distilled(options.folder)
    settings: dict[str, Any] = {"bits": options.bits, "most": options.most, "refine": options.refine}
    if options.refine:
        display.say(f"Rounding values up or down in {options.refine} steps, which takes a while.")
    done = export(distilled, options.target, options.to, license=options.data_license, **settings)
    record: dict[str, Any] = {
        "path": str(done.path),
        "lossless": done.lossless,
        "max_pixel_error": done.max_pixel_error,
        "clipped_fraction": done.clipped_fraction,
        "bytes": sum(f.stat().st_size for f in done.path.rglob("*") if f.is_file() and f.name not in (CARD, PICTURE)),
    }
    display.say(f"Written to {done.path}: {record['bytes']:,} bytes, not counting the card.")
    if not done.lossless:
        changed = "Pixels were rounded to 8 bits"
        if options.to == "encoded":
            changed = done.distilled.record.notes[-1].capitalize()
        clipped = f"; {100 * done.clipped_fraction:.1f} % of pixels were clipped to the valid range"
        display.say(
            f"{changed}{clipped if done.clipped_fraction >= 0.0005 else ''} (largest change of a pixel "
            f"{done.max_pixel_error:.3f} of the range)."
        )
        if options.to == "imagefolder" and distilled.label_kind == "pairs":
            display.say("Each sentence is the training caption nearest to its vector; --to parquet keeps the vectors.")
        if options.score:
            record |= _scored(options, distilled, done.distilled, display)
    if options.json:
        print(json.dumps(record, indent=2))
    return 0


def _scored(
    options: ExportOptions, distilled: DistilledSet, exported: DistilledSet, display: Display
) -> dict[str, Any]:
    """Scores of the set as it is and as it was written, told and for the record; none where it cannot be scored."""
    from datastill.core.errors import InputError
    from datastill.evaluation import evaluate
    from datastill.evaluation.inputs import real_for
    from datastill.report.words import plural

    how: dict[str, Any] = {"network": options.network, "networks": options.networks, "random": False}
    try:
        real = real_for(distilled, options.data)
        if options.data is None:
            display.say(f"Real data: {real.source}, which the set names.")
        with display.bars():
            results = [evaluate(one, real, **how, progress=display.update) for one in (distilled, exported)]
    except InputError as error:
        display.say(f"Not scored: {error}")
        return {}
    before, after = (result.mean for result in results)
    protocol = results[0].protocol
    display.say(
        f"{results[0].measure.capitalize()} {100 * before:.1f} % as stored, {100 * after:.1f} % as exported "
        f"({protocol}, {plural(options.networks, 'network')})."
    )
    return {"accuracy_stored": before, "accuracy_exported": after, "protocol": protocol}


def _refuse_void(options: ExportOptions) -> None:
    """Refuse options that the format has no use for."""
    if options.to != "encoded":
        refuse_void(options, ("bits", "most", "refine"), f"with --to {options.to}")
    elif options.bits == 8 and not options.most:
        refuse_void(options, ("refine",), "with 8 bits a value, which lose nothing that can be told")
    if options.to != "hub":
        refuse_void(options, ("data_license",), f"with --to {options.to}")
    if not options.score or options.to in ("tensors", "hub"):
        why = "without a score" if not options.score else f"with --to {options.to}, which loses nothing to score"
        refuse_void(options, ("data", "network", "networks"), why)
