"""`datastill import`: what it says, what it leaves, and that the other commands take it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datastill import load_distilled
from datastill.cli import main
from datastill.core.rng import Rng

NET = "convnet:width=4,depth=1"


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)


@pytest.fixture
def digits(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    generator = Rng(0).generator("released")
    y = torch.arange(10)
    pairs = [(torch.randn(10, 1, 8, 8, generator=generator), y) for _ in range(2)]
    accuracies = {"ConvNet": [np.float64(0.5)]}
    torch.save({"data": [list(p) for p in pairs], "accs_all_exps": accuracies}, "res_DM_digits.pt")
    return tmp_path


def test_import_then_evaluate_inspect_and_export(digits, capsys):
    words = ["import", "res_DM_digits.pt", "--data", "digits", "--space", "measured", "--out", "runs/imported"]
    assert main([*words, "--network", NET]) == 0
    told = " ".join(capsys.readouterr().err.split())
    for part in ("2 experiments", "10 images each of 1×8×8", "hard labels of 10 classes", "50.00 % on ConvNet"):
        assert part in told
    assert "datastill evaluate runs/imported" in told
    assert Path("runs/imported/preview.png").is_file()
    score = ["evaluate", "runs/imported", "--networks", "1", "--protocol", "dsa-quick-v1", "--json", "--quiet"]
    assert main(score) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["distilled"]["name"] == "released:res_DM_digits"
    assert main(["inspect", "runs/imported"]) == 0
    assert "released:res_DM_digits" in capsys.readouterr().out
    assert main(["export", "runs/imported", "pngs", "--no-score", "--quiet"]) == 0


def test_all_experiments_as_json(digits, capsys):
    words = ["import", "res_DM_digits.pt", "--data", "digits", "--space", "raw", "--out", "runs/all"]
    assert main([*words, "--select", "all", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["found"]["experiments"] == 2
    assert [one["folder"] for one in record["sets"]] == ["runs/all/0", "runs/all/1"]
    assert record["next"] == "datastill evaluate runs/all/0 runs/all/1"
    assert len(load_distilled("runs/all/1").images) == 10


def test_refusals_are_one_message_and_exit_code_2(digits, capsys):
    words = ["import", "res_DM_digits.pt", "--data", "digits"]
    assert main(words) == 2
    assert "not stated" in capsys.readouterr().err
    assert main([*words, "--space", "raw", "--select", "first"]) == 2
    assert "--select is 'first'" in capsys.readouterr().err
    torch.save(Evil(), "evil.pt")
    assert main(["import", "evil.pt", "--data", "digits", "--space", "raw"]) == 2
    assert "nothing in it was run" in capsys.readouterr().err
    assert not (digits / "owned").exists()
    assert not Path("runs").exists()
