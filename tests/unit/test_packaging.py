"""What is installed: types are told, nothing heavy is imported, every dependency and its license are named."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
import yaml

import datastill

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {name: rows for name, rows in PROJECT["optional-dependencies"].items() if name not in ("dev", "docs")}
#: What metadata say where they have no identifier of a license.
CALLED = {
    "BSD": ("bsd",),
    "Apache": ("apache",),
    "MIT": ("mit",),
    "Matplotlib": ("matplotlib", "psf", "python software"),
}


def name_of(row: str) -> str:
    return re.match(r"[\w.-]+", row)[0]


def told() -> dict[str, str]:
    page = (ROOT / "docs" / "reference" / "licenses.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| ([\w.-]+) \| ([^|]+) \|", page)
    return {name: text.strip() for name, text in rows if name != "package"}


def test_every_dependency_is_on_the_page_of_licenses() -> None:
    rows = [*PROJECT["dependencies"], *(row for extra in EXTRAS.values() for row in extra)]
    assert set(told()) == {name_of(row) for row in rows}


@pytest.mark.parametrize("name", sorted(told()))
def test_the_page_says_what_the_package_says(name: str) -> None:
    try:
        found = metadata(name)
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    classifiers = [row for row in found.get_all("Classifier") or [] if row.startswith("License")]
    said = " ".join([found.get("License-Expression") or "", (found.get("License") or "")[:300], *classifiers]).lower()
    words = next(words for family, words in CALLED.items() if told()[name].startswith(family))
    assert any(word in said for word in words), said[:200]


def test_every_dependency_has_a_lower_bound() -> None:
    assert all(">=" in row for row in PROJECT["dependencies"])


def test_types_are_told() -> None:
    assert (Path(datastill.__file__).parent / "py.typed").is_file()
    assert "Typing :: Typed" in PROJECT["classifiers"]


def test_importing_brings_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "datasets", "huggingface_hub", "matplotlib", "pydantic", "rich", "scipy")
    code = f"import sys, datastill, datastill.cli; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_forms_and_the_config_of_the_host_are_sound() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.stem != "config":
            assert {"name", "description", "body"} <= set(form), path
            assert all("label" in part["attributes"] for part in form["body"])
    host = yaml.safe_load((ROOT / ".readthedocs.yaml").read_text(encoding="utf-8"))
    assert (ROOT / host["sphinx"]["configuration"]).is_file()
    assert "docs" in PROJECT["optional-dependencies"]
