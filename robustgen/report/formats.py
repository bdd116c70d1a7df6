"""How the report writes metrics, threat models, noise levels, times and the names of foreign sets."""

from __future__ import annotations

from typing import NamedTuple

from robustgen.report.content import ComparisonEntry, EvaluationEntry, MetricEntry
from robustgen.threat import ThreatModel
from robustgen.types import Norm

NORMS: dict[Norm, str] = {"linf": "L∞", "l2": "L2", "l1": "L1"}
"""The norms as people write them, in the order of the page."""


class Format(NamedTuple):
    """How a metric is written: in percent or as it is, digits after the point, and whether a + is shown."""

    percent: bool = False
    digits: int = 1
    signed: bool = False


FORMATS: dict[str, Format] = {
    **dict.fromkeys(
        ["accuracy", "robust_accuracy", "guarded_accuracy", "corruption_accuracy", "auroc", "aupr_in",
         "aupr_out", "average_precision_in", "average_precision_out", "fpr95_at_id_tpr", "fpr95_at_ood_tpr",
         "gradient_efficiency", "span_share", "random_span_share"],
        Format(percent=True),
    ),
    **dict.fromkeys(
        ["ece", "adaptive_ece", "classwise_ece", "aurc", "e_aurc"], Format(percent=True, digits=2)
    ),
    "guidance_gain": Format(percent=True, signed=True),
    "psnr_gain": Format(signed=True),
    **dict.fromkeys(["nll", "brier", "temperature", "bits_per_dim"], Format(digits=3)),
    **dict.fromkeys(["brier_reliability", "brier_resolution", "brier_uncertainty"], Format(digits=4)),
    **dict.fromkeys(
        ["radius_correlation", "radius_partial_correlation", "radius_ratio", "margin_correlation",
         "minimal_distance", "branch_cosine", "branch_relative_error", "relative_corruption_error"],
        Format(digits=2),
    ),
}  # fmt: skip
"""The format of every metric that is not written as it is with one digit."""
UNBOUNDED = ("guidance_gain", "gradient_efficiency")
"""Percentages that may far exceed 100, from where on they have no digit after the point."""
DETECTED_BY = {"log_prob": "log p(x)", "confidence": "confidence"}
"""The scores that a detector may use, as people write them."""


def eps_text(norm: Norm, eps: float) -> str:
    """An eps as people write it: over 255 where it is a multiple of 1/255.

    >>> eps_text("linf", 8 / 255), eps_text("l2", 0.5), eps_text("l2", 1e-9)
    ('8/255', '0.5', '1e-09')
    """
    slug = ThreatModel(norm, eps).slug.removeprefix(f"{norm}-")
    return slug.replace("-255", "/255")


def sigma_text(sigma: float) -> str:
    """A noise level in pixel units as people write it, to six digits.

    >>> sigma_text(25 / 255), sigma_text(0.0980392), sigma_text(0.4)
    ('σ 25/255', 'σ 25/255', 'σ 0.4')
    """
    levels = 255 * sigma
    grey = sigma < 0.2 and abs(levels - round(levels)) < 1e-4
    return f"σ {round(levels)}/255" if grey else f"σ {sigma:g}"


def format_of(metric: str) -> Format:
    """How a metric is written."""
    return FORMATS.get(metric, Format())


def scale_of(metric: str) -> int:
    """The factor between a metric's value and the number that is shown: 100 for percentages, else 1."""
    return 100 if format_of(metric).percent else 1


def threat_text(norm: Norm, eps: float) -> str:
    """A threat model as people write it.

    >>> threat_text("linf", 8 / 255)
    'L∞ ≤ 8/255'
    """
    return f"{NORMS[norm]} ≤ {eps_text(norm, eps)}"


def number_text(metric: str, value: float, size: float | None = None) -> str:
    """A value of a metric, or a difference of two, as the report shows it; 0 has no sign.

    ``size``: the number that decides how many digits there are, by default the value itself.

    >>> number_text("accuracy", 0.98765), number_text("psnr_gain", 0.75), number_text("psnr_gain", -0.75)
    ('98.8', '+0.8', '−0.8')
    >>> number_text("psnr_gain", -0.01)
    '0.0'
    """
    scale = scale_of(metric)
    text = f"{scale * value:+.{_digits(metric, scale * abs(value if size is None else size))}f}"
    signed = text.strip("+-0.") and (format_of(metric).signed or value < 0)
    return text.replace("-", "−") if signed else text[1:]


def _digits(metric: str, size: float) -> int:
    if metric in UNBOUNDED and size >= 100:
        return 0
    if metric == "guidance_gain" and size < 1:  # typical of colour pictures
        return 2
    return format_of(metric).digits


def format_value(entry: MetricEntry) -> str:
    """The value of an entry as the report shows it."""
    return number_text(entry["metric"], entry["value"])


def format_interval(entry: MetricEntry | ComparisonEntry) -> str:
    """The 95 % interval of an entry, such as 82.5–93.4 or −1.3 to 2.0."""
    metric, ends = entry["metric"], (entry["ci_low"], entry["ci_high"])
    size = max(map(abs, ends))
    low, high = (number_text(metric, end, size).removeprefix("+") for end in ends)
    return f"{low} to {high}" if "−" in low + high else f"{low}–{high}"


def p_text(p: float) -> str:
    """A p value as people write it.

    >>> p_text(0.04321), p_text(1e-7)
    ('0.043', '< 0.001')
    """
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def time_text(value: float) -> str:
    """A time as people write it: two digits, and no exponent.

    >>> time_text(0.0897), time_text(0.504), time_text(12.34), time_text(1262.3)
    ('0.09', '0.50', '12.3', '1,262')
    """
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def foreign_name(detail: EvaluationEntry) -> str:
    """The name of a foreign set, marked as confounded where it did not go through the data's codec."""
    return f"{detail['data']}{', raw (confounded)' if 'confounded' in detail else ''}"
