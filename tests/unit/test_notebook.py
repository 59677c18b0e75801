"""What notebooks show of sets and results, and sets for training code of one's own."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

import datastill
from datastill.core.errors import InputError
from datastill.data.real import RealSet
from datastill.store.artifact import DistilledSet

pytestmark = pytest.mark.usefixtures("short_protocols")

NET = "convnet:width=4,depth=1"


@pytest.fixture(scope="module")
def real() -> RealSet:
    return datastill.load_real("digits")


@pytest.fixture(scope="module")
def made(real: RealSet) -> DistilledSet:
    return datastill.distill("random", real, ipc=2, network=NET)


def drawn(figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer)


def test_sets_are_shown_with_a_picture(real: RealSet, made: DistilledSet) -> None:
    for shown, told in ((made, "random on digits, ipc 2"), (real, "1 × 8 × 8")):
        html = shown._repr_html_()
        assert told in html
        assert "<strong>" not in html, "the title is in the picture, and in its words for those who do not see it"
        (uri,) = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
        picture = Image.open(io.BytesIO(base64.b64decode(uri)))
        assert len(np.unique(np.asarray(picture))) > 10
        assert drawn(shown.plot()).width > 100


def test_what_a_run_changed_is_told(real: RealSet) -> None:
    changed = datastill.distill("dm", real, ipc=1, network=NET, steps=1, real_batch=4, codes="dct")
    assert "codes" in changed._repr_html_()
    assert "codes" not in datastill.distill("random", real, ipc=1, network=NET)._repr_html_()


def test_kinds_of_plots_that_there_are_not(made: DistilledSet) -> None:
    with pytest.raises(InputError, match=r"DistilledSet has no plot 'nope'. Known: images"):
        datastill.plot(made, "nope")


def test_names_are_no_markup(real: RealSet) -> None:
    pixels = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    odd = datastill.load_real((pixels, torch.arange(8) % 2), holdout=0, class_names=["<b>", "a&b"])
    assert "<b>" not in datastill.distill("random", odd, ipc=1, network=NET)._repr_html_()


def test_results_are_shown_as_tables_and_dots(real: RealSet, made: DistilledSet, tmp_path: Path) -> None:
    found = datastill.evaluate(made, real, networks=2, protocol="dsa-quick-v1")
    html = found._repr_html_()
    assert "dsa-quick-v1" in html
    assert f"{100 * found.mean:.1f}" in html
    assert "Random" in html
    (axes,) = found.plot().axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["distilled", "Random"]
    shown = sorted(float(x) for line in axes.lines if line.get_marker() == "o" for x in line.get_xdata())
    every = torch.cat([found.distilled.accuracies.flatten(), found.random.accuracies.flatten()])
    assert np.allclose(shown, sorted((100 * every).tolist()))


def test_a_comparison_is_shown(tmp_path: Path) -> None:
    compared = datastill.compare(
        ["random", "mosaic"], "digits", ipc=1, network=NET, protocol="dsa-quick-v1", networks=1, out=tmp_path / "c"
    )
    assert "mosaic" in compared._repr_html_()
    assert [text.get_text() for text in compared.plot().axes[0].get_yticklabels()] == ["random", "mosaic"]


def test_what_has_no_picture_is_told() -> None:
    for function in (datastill.as_html, datastill.plot):
        with pytest.raises(TypeError, match="int has no"):
            function(3)


def test_a_loader_gives_the_set_in_new_orders(made: DistilledSet) -> None:
    loader = made.as_dataloader(8)
    first, second = (torch.cat([y for _, y in loader]) for _ in range(2))
    assert first.tolist() != second.tolist()
    assert sorted(first.tolist()) == sorted(made.targets.tolist())
    assert torch.equal(first, torch.cat([y for _, y in made.as_dataloader(8)]))
    x, y = next(iter(made.as_dataloader(20, shuffle=False, pixels=True)))
    assert torch.equal(x, made.pixels)
    assert torch.equal(y, made.targets)
    augmented, _ = next(iter(made.as_dataloader(20, shuffle=False, augment="crop")))
    assert augmented.shape == made.images.shape
    assert not torch.equal(augmented, made.images)
    with pytest.raises(InputError, match="batch_size"):
        made.as_dataloader(0)
    with pytest.raises(InputError, match="crop"):
        made.as_dataloader(8, augment="crob")


def test_scikit_learn_takes_it(real: RealSet, made: DistilledSet) -> None:
    x, y = made.to_numpy()
    assert x.shape == (20, 64)
    fitted = LogisticRegression(max_iter=200).fit(x, y)
    test = real.test
    assert test is not None
    batch = torch.arange(len(test))
    assert fitted.score(test.pixels(batch).flatten(1).numpy(), test.labels.numpy()) > 0.4
