"""How numbers are written."""

from __future__ import annotations

import doctest

import pytest

from robustgen.report import formats


def test_examples_of_the_docstrings() -> None:
    assert doctest.testmod(formats).failed == 0


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("accuracy", 0.98765, "98.8"),
        ("ece", 0.012345, "1.23"),
        ("nll", 0.12345, "0.123"),
        ("brier", 0.12345, "0.123"),
        ("brier_resolution", 0.12345, "0.1235"),
        ("radius_correlation", -0.125, "−0.12"),
        ("relative_corruption_error", 1.234, "1.23"),
        ("psnr", 23.456, "23.5"),
        ("psnr_gain", 0.75, "+0.8"),
        ("guidance_gain", 0.0042, "+0.42"),
        ("guidance_gain", -0.0999, "−10.0"),
        ("guidance_gain", -3.21, "−321"),
        ("gradient_efficiency", 0.004, "0.4"),
        ("gradient_efficiency", 1.5, "150"),
        ("auroc", 1.0, "100.0"),
        ("auroc", 0.0, "0.0"),
        ("guidance_gain", -0.00001, "0.00"),
        ("guidance_gain", 0.0, "0.00"),
        ("psnr_gain", -0.04, "0.0"),
        ("psnr_gain", -0.06, "−0.1"),
        ("radius_correlation", -0.001, "0.00"),
    ],
)
def test_a_number_has_the_digits_of_its_metric(metric: str, value: float, text: str) -> None:
    assert formats.format_value({"metric": metric, "value": value}) == text


def test_an_interval_with_a_minus_says_to() -> None:
    ends = {"ci_low": 0.001, "ci_high": 0.02}
    assert formats.format_interval({"metric": "accuracy"} | ends) == "0.1–2.0"
    assert formats.format_interval({"metric": "guidance_gain"} | ends) == "0.1–2.0"
    assert formats.format_interval({"metric": "psnr_gain", "ci_low": -1.3, "ci_high": 2.0}) == "−1.3 to 2.0"


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [(-1.08, -0.741, "−108 to −74"), (-0.003, 0.0008, "−0.30 to 0.08"), (-0.00001, 0.02, "0.0–2.0")],
)
def test_both_ends_of_an_interval_have_the_digits_of_the_larger(low: float, high: float, text: str) -> None:
    assert formats.format_interval({"metric": "guidance_gain", "ci_low": low, "ci_high": high}) == text
