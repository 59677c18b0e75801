"""Code of the user's that fails: whose it was, when, how to go on; and what is ours stays a traceback of ours."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from datastill import distill, evaluate, load_distilled
from datastill.cli import main
from datastill.core.errors import UserCodeFailed
from datastill.core.plan import Callback

from datastill.store.files import read_tensors

NETWORK = """
import torch
from torch import nn

CALLS = 0
FAULT = {fault!r}

class Net(nn.Module):
    def __init__(self, channels, classes, size):
        super().__init__()
        self.body = nn.Conv2d(channels, 4, 3)
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        global CALLS
        CALLS += 1
        if FAULT == "detached" and CALLS > {after}:
            with torch.no_grad():
                return self.head(self.body(x).relu().mean((2, 3)))
        out = self.head(self.body(x).relu().mean((2, 3)))
        if CALLS > {after} and FAULT == "raises":
            raise ValueError("no more calls")
        if CALLS > {after} and FAULT == "shape":
            return out[:, :3]
        if CALLS > {after} and FAULT == "torch":
            return self.head(out)
        return out
"""

METHOD = """
from dataclasses import dataclass, replace
from datastill.core.registry import method
from datastill.methods.dm import DM

class Faulty:
    def __init__(self, inner):
        self.inner = inner

    def __call__(self, context):
        loss = self.inner(context)
        return loss if context.step < 3 else {returned}

@method("{name}", paper="none", family="mine")
@dataclass(frozen=True, kw_only=True)
class Mine(DM):
    def build(self, task):
        plan = super().build(task)
        return {built}
"""


def network_file(folder: Path, fault: str, after: int) -> str:
    path = folder / f"net_{fault}.py"
    path.write_text(NETWORK.format(fault=fault, after=after))
    return f"{path}:Net"


def method_file(folder: Path, name: str, returned: str = "loss", built: str | None = None) -> str:
    path = folder / f"{name}.py"
    built = built or "replace(plan, objective=Faulty(plan.objective))"
    path.write_text(METHOD.format(name=name, returned=returned, built=built))
    return str(path)


def run(out: Path, method: str, *more: str) -> int:
    words = ["--data", "digits", "--ipc", "1", "--steps", "8", "--out", str(out), "--real-batch", "4", "--seed", "3"]
    return main(["distill", method, *words, *more])
