"""Random faults in a row on a real report: nothing finished is lost, no bit is changed, no word untrue."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_twenty_faults_lose_nothing_and_leave_nothing_wrong() -> None:
    # in a process of its own: it forks, which threads of other tests would not bear
    command = [sys.executable, "-m", "benchmarks.faults", "--faults", "20", "--seed", "1", "--json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = json.loads(result.stdout)
    assert (found["lost"], found["wrong"]) == ([], [])
    assert found["faults"] == 20 == sum(found["kinds"].values())
    assert len(found["kinds"]) >= 8, "many kinds of faults"
    assert result.returncode == 0
