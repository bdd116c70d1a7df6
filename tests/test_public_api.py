"""What ``import robustgen`` offers: its names, and the options of ``evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import robustgen
from robustgen import Report, UserError


def test_every_public_name_can_be_imported_and_is_listed() -> None:
    assert set(robustgen.__all__) <= set(dir(robustgen))
    assert all(getattr(robustgen, name).__doc__ for name in robustgen.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Reports'"):
        robustgen.Reports  # noqa: B018


def test_evaluate_takes_the_options_of_the_command(tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch": 4, "device": "cpu", "precision": "float32", "time_limit": 60}
    report = robustgen.evaluate("softmax-digits", protocol="clean", out=tmp_path, n=8, **options)
    assert isinstance(report, Report)
    assert "accuracy" in set(report.to_frame()["metric"])


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"batch": 0}, "batch must be a positive integer"),
        ({"device": "tpu"}, "no such device"),
        ({"precision": "fp16"}, "unknown precision"),
    ],
)
def test_an_option_that_is_none_is_refused(tmp_path: Path, option: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        robustgen.evaluate("softmax-digits", protocol="clean", out=tmp_path, n=8, **option)


def test_evaluate_takes_paths_and_what_load_protocol_returns(tmp_path: Path) -> None:
    model, protocol = Path("models/softmax-digits"), robustgen.load_protocol("clean")
    report = robustgen.evaluate(model, data=Path("digits"), protocol=protocol, out=tmp_path, n=8)
    assert (report.content["protocol"]["name"], report.content["n"]) == ("clean", 8)


def test_a_loaded_data_set_is_refused_with_the_name_that_it_has(tmp_path: Path) -> None:
    digits: Any = robustgen.load_data("digits")
    with pytest.raises(UserError, match="data is given by its name") as refusal:
        robustgen.evaluate("softmax-digits", data=digits, out=tmp_path)
    assert refusal.value.details["remedy"] == "data='digits'"
