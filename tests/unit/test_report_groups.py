"""What is shown of a biased set: names of its attribute, matrices by class and attribute, nearest colors."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from datastill import distill, evaluate, load_real
from datastill.cli import main
from datastill.cli.tables import group_table
from datastill.core.rng import Rng
from datastill.data import RealSet
from datastill.data.biased import Attribute, attribute_of
from datastill.data.biased.colored import COLORS, NAMES, colors, nearest_color
from datastill.evaluation.scores import Evaluation, Groups
from datastill.experiments.debias_cell import color_distance, conflicting_share
from datastill.report import card, write_report
from datastill.report.groups import css, groups, palette
from datastill.store.artifact import DistilledSet

pytestmark = pytest.mark.usefixtures("short_protocols")

SOURCE = "cmnist:base=digits,ratio=0.05"
NET = "convnet:width=4,depth=1"


@pytest.fixture(scope="module")
def real() -> RealSet:
    return load_real(SOURCE)


@pytest.fixture(scope="module")
def made(real: RealSet) -> DistilledSet:
    return distill("random", real, ipc=2, network=NET)


@pytest.fixture(scope="module")
def found(real: RealSet, made: DistilledSet) -> Evaluation:
    return evaluate(made, real, networks=1, protocol="dsa-quick-v1")


def strokes(count: int) -> torch.Tensor:
    """Gray images with a black background, (count, 1, 8, 8)."""
    generator = Rng(0).generator("strokes")
    return torch.rand(count, 1, 8, 8, generator=generator) * (torch.rand(count, 1, 8, 8, generator=generator) < 0.4)


def with_groups(found: Evaluation, matrix: torch.Tensor, **data: object) -> Evaluation:
    """The evaluation with another matrix, the same in both arms."""
    arms = {
        name: replace(arm, groups=Groups(1.0, math.nan, matrix), per_class=matrix.diagonal())
        for name, arm in (("distilled", found.distilled), ("random", found.random))
        if arm is not None
    }
    return replace(found, data={**found.data, **data}, **arms)


def of_classes(made: DistilledSet, names: list[str]) -> DistilledSet:
    """One of the images for each of these classes."""
    images = made.images[:1].expand(len(names), -1, -1, -1).contiguous()
    classes = {"names": names, "label_ids": list(range(len(names)))}
    return DistilledSet({"images": images}, torch.arange(len(names)), made.space, {**made.manifest, "classes": classes})


# The attribute


@pytest.mark.parametrize(
    ("source", "kind", "first", "last"),
    [
        (SOURCE, "color", "red-orange", "crimson"),
        ("bg-fmnist:base=digits", "background", "horizontal stripes", "crosshatch"),
        ("ccifar10:base=digits,corruptions=0", "corruption", "snow", "saturate"),
        ("ccifar10:base=digits,corruptions=1", "corruption", "gaussian noise", "original"),
    ],
)
def test_a_biased_set_says_what_its_attribute_is(source: str, kind: str, first: str, last: str):
    one = load_real(f"{source},train=20,test=20")
    assert one.attribute is not None
    assert (one.attribute.kind, one.attribute.names[0], one.attribute.names[9]) == (kind, first, last)
    assert len(one.attribute.names) == 10
    assert bool(one.attribute.colors) == (kind == "color")
    assert one.test.attribute == one.attribute == one.subset(torch.tensor([0])).attribute
    told = json.loads(json.dumps(one.describe()))
    assert attribute_of(told, 12) == replace(one.attribute, names=(*one.attribute.names, "10", "11"))


def test_other_sets_have_no_attribute_and_values_are_numbers():
    plain = load_real("digits")
    assert plain.attribute is None
    assert "attribute" not in plain.describe()
    assert attribute_of(plain.describe(), 3) == Attribute("attribute", ("0", "1", "2"))


def test_what_distils_does_not_depend_on_bias_or_its_names(real: RealSet):
    blind = replace(real, bias=None, attribute=None)
    one, other = (distill("dm", r, ipc=1, network=NET, steps=2, real_batch=8) for r in (real, blind))
    assert torch.equal(one.images, other.images)


# Nearest colors


def slow_nearest(image: torch.Tensor, known: list[list[float]]) -> tuple[int, float]:
    """Pixel by pixel: the mean of bright pixels, weighted by brightness, and its angle to each color."""
    pixels = [[float(v) for v in image[:, i, j]] for i in range(image.shape[1]) for j in range(image.shape[2])]
    top = max(max(p) for p in pixels)
    mean = [sum(p[k] * max(p) for p in pixels if max(p) > 0.5 * top) for k in range(3)]

    def angle(color: list[float]) -> float:
        inner = sum(a * b for a, b in zip(mean, color))
        return math.degrees(math.acos(min(1.0, inner / (math.hypot(*mean) * math.hypot(*color)))))

    angles = [angle(color) for color in known]
    return angles.index(min(angles)), min(angles)


def test_nearest_colors_agree_with_a_slow_search():
    generator = Rng(1).generator("images")
    images = torch.rand(40, 3, 5, 5, generator=generator) * (torch.rand(40, 1, 5, 5, generator=generator) < 0.3)
    images[:, 0, 0, 0] = 0.6  # none is black
    known = colors(12).tolist()
    near = nearest_color(images, known)
    slow = [slow_nearest(image, known) for image in images]
    assert near.index.tolist() == [index for index, _ in slow]
    assert near.distance.tolist() == pytest.approx([angle for _, angle in slow], abs=1e-3)


def test_painted_strokes_have_their_color_and_mixed_ones_are_far_from_all():
    painted = strokes(10) * torch.tensor(COLORS)[:, :, None, None]
    near = nearest_color(painted, colors(10))
    assert torch.equal(near.index, torch.arange(10))
    assert near.distance.max() < 0.01
    mixed = painted[4:5].clone()
    mixed[:, :, ::2] = (strokes(5)[4] * torch.tensor(COLORS[9])[:, None, None])[:, ::2]  # cyan and crimson
    assert nearest_color(mixed, colors(10)).distance.item() > 10
    black = nearest_color(torch.zeros(1, 3, 4, 4), colors(10))
    assert black.distance.item() == pytest.approx(90)


def test_the_palette_counts_images_in_colors_of_other_classes(real: RealSet, made: DistilledSet):
    painted = strokes(20) * torch.tensor(COLORS).repeat_interleave(2, 0)[:, :, None, None]
    painted[3], painted[5] = (strokes(2) * torch.tensor([COLORS[7], COLORS[0]])[:, :, None, None]).unbind()
    colored = replace(made, codes={"images": made.space.encode(painted)})
    shown = palette(colored, None)  # from the manifest alone
    assert shown == palette(colored, real)
    assert shown.conflicting == 2
    assert [i for i, swatch in enumerate(shown.swatches) if swatch.conflicting] == [3, 5]
    assert shown.swatches[3].color == css(COLORS[7])
    assert NAMES[7] in shown.swatches[3].title
    assert shown.farthest < 0.1
    assert shown.apart == pytest.approx(8.9, abs=0.1)
    assert conflicting_share(colored, real) == pytest.approx(0.1)
    assert color_distance(colored, real) == pytest.approx(shown.mean)
    plain = load_real("digits")
    assert palette(distill("random", plain, ipc=1), plain) is None
    assert conflicting_share(made, plain) is None
    assert color_distance(made, plain) is None


# Matrices


def test_the_matrix_of_the_page_is_that_of_the_evaluation(found: Evaluation):
    matrix = torch.tensor([[1.0, 0.0], [float("nan"), 0.874]]).double()
    shown = groups(with_groups(found, matrix), ["a", "b"])
    assert shown.attribute == "color"
    assert [m.name for m in shown.matrices] == [found.distilled.name, found.random.name]
    for one in shown.matrices:
        assert [name for name, _ in one.rows] == ["a", "b"]
        assert [[cell.text for cell in cells] for _, cells in one.rows] == [["100", "0"], ["–", "87"]]
        assert [[cell.heat for cell in cells] for _, cells in one.rows] == [[100, 0], [0, 87]]
        assert [[cell.aligned for cell in cells] for _, cells in one.rows] == [[True, False], [False, True]]
    assert shown.matrices[0].rows[1][1][1].title == "b, yellow: 87.4 %"
    assert shown.values[4].color == css(COLORS[4]) == "#16c6fa"
    assert groups(None, []) is None
    assert groups(replace(found, distilled=replace(found.distilled, groups=None)), ["a"]) is None


def test_a_page_of_a_biased_set_has_groups_matrices_and_swatches(tmp_path: Path, real, made, found):
    text = write_report(tmp_path / "r.html", made, found, real).read_text(encoding="utf-8")
    arm = found.distilled.groups
    for needed in (f">{100 * arm.aligned:.1f}</td>", f">{100 * arm.conflicting:.1f}</td>", "Conflicting, %",
                   "Accuracy by class and color", "near 0 elsewhere", "red-orange", css(COLORS[4])):  # fmt: skip
        assert needed in text
    assert text.count('class="aligned"') == 2 * 10
    assert text.count('<figure class="matrix') == 2
    assert text.count('class="swatch"') == 20
    odd = palette(made, real).conflicting
    assert text.count("<b>≠</b>") == odd
    assert f"{odd} of 20 images" in text
    rows = re.search(r"<tbody>(.*?)</tbody>", text, re.S).group(1).split("</tr>")
    assert len({row.count("<td") for row in rows if "<td" in row}) == 1


def test_a_page_of_another_set_has_none_of_it(tmp_path: Path, made: DistilledSet, found: Evaluation):
    bare = {k: v for k, v in made.manifest["data"].items() if k != "attribute"}
    one = replace(made, manifest={**made.manifest, "data": bare})
    plain = replace(found, distilled=replace(found.distilled, groups=None))
    text = write_report(tmp_path / "r.html", one, plain).read_text(encoding="utf-8")
    for absent in ("Conflicting, %", '<figure class="matrix', 'class="swatch"'):
        assert absent not in text


@pytest.mark.parametrize(("classes", "folded"), [(20, False), (21, True), (120, True)])
def test_many_classes_are_folded_and_hostile_names_escaped(tmp_path: Path, made, found, classes: int, folded: bool):
    names = [f"<q>{c}" for c in range(classes)]
    attribute = {"kind": "<i>x", "names": [f"<u>{c}" for c in range(classes)]}
    scored = with_groups(found, torch.eye(classes).double(), attribute=attribute)
    text = write_report(tmp_path / "r.html", of_classes(made, names), scored).read_text(encoding="utf-8")
    shown = min(classes, 100)
    assert (f"<summary>{shown} classes" in text) == folded
    assert (f"First 100 of {classes} classes" in text) == (classes > 100)
    assert text.count('class="aligned"') == 2 * shown
    assert not re.search(r"<q>|<i>x|<u>", text)


# The command and the card


def test_the_terminal_shows_the_matrix_of_twenty_classes_at_most(found: Evaluation):
    matrix = torch.eye(10).double()
    matrix[3, 4] = float("nan")
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(group_table(with_groups(found, matrix), [f"class-{c}" for c in range(10)]))
    lines = console.export_text().splitlines()
    row = next(line for line in lines if "class-3" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["class-3", "0", "0", "0", "100", "–", *["0"] * 5]
    assert "4■cyan" in "".join(lines)
    assert group_table(with_groups(found, torch.eye(21).double()), ["x"] * 21) is None
    assert group_table(replace(found, distilled=replace(found.distilled, groups=None)), ["x"]) is None


def test_the_card_has_aligned_and_conflicting(made: DistilledSet, found: Evaluation):
    text, arm = card(made, found), found.distilled.groups
    assert "| seconds | aligned | conflicting |" in text
    assert f"| {100 * arm.aligned:.1f} | {100 * arm.conflicting:.1f} |" in text
    plain = replace(found, distilled=replace(found.distilled, groups=None))
    assert "aligned" not in card(made, plain)


def test_the_command_prints_both_tables(
    tmp_path: Path, made: DistilledSet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "120")  # narrower, and heads are folded
    made.save(tmp_path)
    assert main(["evaluate", str(tmp_path), "--networks", "1", "--protocol", "dsa-quick-v1", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "conflicting %" in printed
    assert "by class and color" in printed
    assert "Accuracy by class and color" in (tmp_path / "report.html").read_text(encoding="utf-8")
