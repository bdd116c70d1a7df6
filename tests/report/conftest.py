"""A report of made-up runs, written once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_fakes as fakes

from robustgen.report import pictures
from robustgen.report.render import render
from robustgen.report.summary import summarise

COMMAND = "robustgen report --data digits --protocol quick --n 48 --out out"


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
        patch.setattr(pictures, "clean_pictures", lambda data: clean)
        render(out)
    return out, summary
