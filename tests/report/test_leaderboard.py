"""The index over published reports: the same numbers as theirs, a table each, and the way to each page."""

import json
import re
import shutil

import pytest

from robustgen.errors import UserError
from robustgen.report.leaderboard import leaderboard


@pytest.fixture
def reports(written, tmp_path):
    for name in ("digits-quick", "digits-again"):
        shutil.copytree(written[0], tmp_path / name)
    return tmp_path


def test_every_report_has_its_table_with_its_own_numbers(reports):
    text = leaderboard(reports).read_text()
    assert re.findall(r'<a href="([^"]+)"', text) == ["digits-again/index.html", "digits-quick/index.html"]
    content = json.loads((reports / "digits-quick" / "summary.json").read_text())
    for metric in content["metrics"]:
        if (metric["metric"], metric["evaluation"]) == ("accuracy", "clean"):
            assert text.count(f'data-value="{metric["value"]}"') >= 2  # once a table
    stages = [m for m in content["metrics"] if m["metric"] == "robust_accuracy" and m["variant"]]
    assert stages  # which the index leaves to the report
    assert "worst case" in text
    assert "<script>alert" not in text


def test_a_folder_without_reports_says_so(tmp_path):
    with pytest.raises(UserError, match="there is no report here"):
        leaderboard(tmp_path)
