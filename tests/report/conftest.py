"""Reports, each written once for all tests of this folder: of made-up runs, and one of the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_fakes as fakes
from report_page import Page

from robustgen.report import pictures
from robustgen.report.render import render
from robustgen.report.summary import summarise

COMMAND = "robustgen report --data digits --protocol quick --n 48 --out out"
REAL = "softmax-digits pgd-at-digits --data digits --protocol quick --n 32 --device cpu"


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """(folder, summary) of a report of four models, one of them joint and one with a foul name."""
    out = tmp_path_factory.mktemp("report")
    runs = [
        fakes.write_run(out, "softmax-digits", skill=3.0, seed=1),
        fakes.write_run(out, "cdn-digits", skill=4.5, seed=2, joint=True, density="lower_bound"),
        fakes.write_run(out, "pgd-at-digits", skill=6.0, seed=3),
        fakes.write_run(out, "my-model", skill=1.5, seed=4, summary="<script>alert('x')</script>"),
    ]
    summary = summarise(out, runs, 48, COMMAND)
    with pytest.MonkeyPatch.context() as patch:
        clean = np.random.default_rng(0).random((60, *fakes.SHAPE)).astype(np.float32)
        patch.setattr(pictures, "clean_pictures", lambda data, root=None: clean)
        render(out)
    return out, summary


def lost(out: Path) -> Path:
    """A report of models that lack half of their samples, each in another evaluation."""
    runs = [fakes.write_run(out, name, seed=i, joint=True) for i, name in enumerate("abcd")]
    gone = [
        "samples/clean/000000-000030",
        "samples/ood-letters/000000-000025",
        "tables/gradients/guidance/000000-000030",
        "samples/ood-letters/000025-000050",  # so that b and d share no foreign picture
    ]
    for run, chunk in zip(runs, gone, strict=True):
        (run.path / f"{chunk}.parquet").unlink()
    summarise(out, runs, None, "robustgen report")
    render(out)
    return out


def drawn(out: Path) -> Path:
    """A report of two stochastic models beside a deterministic one."""
    runs = [
        fakes.write_run(out, "plain", skill=3.0, seed=5),
        fakes.write_run(out, "noisy", skill=3.0, seed=6, stochastic=True),
        fakes.write_run(out, "smoothed", skill=5.0, seed=7, stochastic=True),
    ]
    summarise(out, runs, None, "robustgen report")
    render(out)
    return out


def real(out: Path) -> Path:
    """A report that the command made."""
    program = "import sys; from robustgen.cli import app; sys.argv[0] = 'robustgen'; app()"
    command = [sys.executable, "-c", program, "report", *REAL.split(), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="session", params=["made-up", "lost", "drawn", "real"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report: whole, with lost chunks, of stochastic models, and as the command makes it."""
    if request.param == "made-up":
        return request.getfixturevalue("written")[0]
    return {"lost": lost, "drawn": drawn, "real": real}[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def summary(report: Path) -> dict[str, Any]:
    return json.loads((report / "summary.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def page(report: Path) -> Page:
    return Page((report / "index.html").read_text(encoding="utf-8"))
