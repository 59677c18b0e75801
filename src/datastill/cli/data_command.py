"""`datastill data PATH`: what is understood of real data, before anything is done with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from datastill.cli.options import DataOptions, parse
from datastill.cli.streams import print_rows
from datastill.core.errors import InputError

if TYPE_CHECKING:
    from datastill.data.survey import Survey

#: Images of a class on the contact sheet.
COLUMNS = 8
#: What our pictures say of themselves, so that one may be made anew and a picture of the user's is not overwritten.
OURS = "datastill data"


@dataclass(frozen=True, kw_only=True)
class DataCommandOptions(DataOptions):
    """Which data, and where the picture goes."""

    data: tyro.conf.Positional[str]  #: a folder, a set's name, or anything that --data takes
    out: Path | None = None  #: a .png for a contact sheet: some images of every class
    json: bool = False  #: print as JSON


def main(args: list[str]) -> int:
    """Parse, look, print; 2 where the data cannot be used as they are."""
    about = "Show what is understood of real data before anything is done with it: splits, classes, sizes, pixels."
    options = parse(DataCommandOptions, args, "data", about)
    from datastill.data.places import places_of
    from datastill.data.survey import survey, told

    if options.out is not None:
        _refuse_other_file(options.out, options.data, tuple(places_of(options.data)))
    found = survey(options.data, options.request(), options.space)
    record = found.to_dict()
    if options.out is not None and found.real is not None:
        _write_sheet(found, options.out)
        record["sheet"] = str(options.out)
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        print_rows([*told(record), *([("sheet", str(options.out))] if "sheet" in record else [])])
    if found.error is None:
        return 0
    made = " Above, they were made alike for a look (64 pixels, RGB, damaged files left out)." if found.relaxed else ""
    raise InputError(found.error + made)


def _refuse_other_file(out: Path, data: str, places: tuple[Path, ...]) -> None:
    from datastill.store.outputs import refuse_out

    if out.suffix.lower() != ".png":
        raise InputError(f"The contact sheet is a PNG; name it so, such as --out {out.with_suffix('.png')}.")
    refuse_out(out.absolute().parent / ".sheet", places)
    if out.exists() and not _is_ours(out):
        raise InputError(f"{out} is there and is no contact sheet of this command; choose another --out.")


def _is_ours(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.info.get("Software") == OURS
    except (OSError, ValueError, SyntaxError):
        return False


def _write_sheet(found: Survey, out: Path) -> None:
    """Some images of every class; test images beside training images."""
    import io

    from PIL.PngImagePlugin import PngInfo

    from datastill.data.survey import samples
    from datastill.report.pictures import comparison, grid
    from datastill.store.files import write_bytes

    real = found.real
    assert real is not None
    splits = [one for one in (real, real.test) if one is not None]
    sides = []
    for one in splits:
        index = samples(one, COLUMNS)
        sides.append((one.pixels(index), one.labels[index], one.class_names))
    titles = [f"{name}: {len(one):,} images" for name, one in zip(("train", "test"), splits)]
    if len(sides) == 1:
        picture = grid(*sides[0], title=titles[0], columns=COLUMNS)
    else:
        picture = comparison(sides[0], sides[1], (titles[0], titles[1]), columns=COLUMNS, rows=20)
    info, buffer = PngInfo(), io.BytesIO()
    info.add_text("Software", OURS)
    picture.save(buffer, "PNG", pnginfo=info)
    write_bytes(out, buffer.getvalue())
