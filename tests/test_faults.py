"""kill -9, five times over, on a real report: nothing finished is lost, and no bit is changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faults import kill_and_resume


@pytest.mark.slow
def test_killed_five_times_a_report_ends_with_the_same_rows(tmp_path: Path):
    arguments = ["softmax-digits", "pgd-at-digits", "--data", "digits", "--protocol", "quick", "--n", "64"]
    result = kill_and_resume(arguments, kills=5, folder=tmp_path)
    assert result.kills == 5
    assert result.recomputed == 0
    assert result.differing == []
