"""Where the page finds the clean pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_fakes as fakes

from robustgen import data
from robustgen.report import pictures
from robustgen.report.render import render
from robustgen.report.summary import summarise


def test_clean_pictures_are_those_of_the_runs_data_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def clean(data: Any, root: Any = None) -> np.ndarray:
        asked.append(root)
        return np.zeros((60, *fakes.SHAPE), np.float32)

    monkeypatch.setattr(pictures, "clean_pictures", clean)
    there = {**fakes.ENVIRONMENT, "data_root": str(tmp_path)}
    for environment in (there, {**there, "data_root": None}, fakes.ENVIRONMENT):
        monkeypatch.setattr(fakes, "ENVIRONMENT", environment)
        out = tmp_path / str(len(asked))
        summarise(out, [fakes.write_run(out, "m")], None, "")
        assert str(tmp_path) not in render(out).read_text(encoding="utf-8")
    assert asked == [str(tmp_path), None, None]


def test_a_first_model_without_attacks_takes_no_picture_from_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "clean_pictures", lambda *_: np.zeros((60, *fakes.SHAPE), np.float32))
    clean = fakes.write_run(tmp_path, "clean-alone", evaluations=fakes.evaluations()[:1])
    summarise(tmp_path, [clean, fakes.write_run(tmp_path, "attacked")], None, "")
    assert "What the attack changed" in render(tmp_path).read_text(encoding="utf-8")


def test_the_data_root_is_handed_to_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits, roots = data.load("digits"), []
    monkeypatch.setattr(data, "load", lambda name, root=None: roots.append(root) or digits)
    found = pictures.clean_pictures({"name": "digits", "fingerprint": digits.fingerprint}, str(tmp_path))
    assert found.shape == (400, 1, 8, 8)
    assert roots == [str(tmp_path)]
