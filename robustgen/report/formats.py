"""How the report writes numbers, sizes of perturbations and the names of sets."""

from __future__ import annotations

from typing import Any

from robustgen.report.content import MetricLine
from robustgen.threat import ThreatModel
from robustgen.types import Norm

NORMS: dict[Norm, str] = {"linf": "L∞", "l2": "L2", "l1": "L1"}
SHARES = frozenset(
    ["accuracy", "robust_accuracy", "guarded_accuracy", "corruption_accuracy", "ece", "adaptive_ece",
     "classwise_ece", "aurc", "e_aurc", "auroc", "aupr_in", "aupr_out", "average_precision_in",
     "average_precision_out", "fpr95_at_id_tpr", "fpr95_at_ood_tpr", "guidance_gain", "gradient_efficiency",
     "span_share", "random_span_share"]
)  # fmt: skip
DIGITS = (
    dict.fromkeys(["nll", "brier", "temperature", "bits_per_dim"], 3)
    | dict.fromkeys(["brier_reliability", "brier_resolution", "brier_uncertainty"], 4)
    | dict.fromkeys(
        ["ece", "adaptive_ece", "classwise_ece", "aurc", "e_aurc", "radius_correlation",
         "radius_partial_correlation", "radius_ratio", "margin_correlation", "minimal_distance",
         "branch_cosine", "branch_relative_error", "relative_corruption_error"], 2,
    )
)  # fmt: skip
"""How many digits a number is given to behind the point; 1 where it is not listed."""
WIDE = ("guidance_gain", "gradient_efficiency")
"""Shares that may be many times the whole: from 100 % on they have no digit behind the point."""
SIGNED = ("guidance_gain", "psnr_gain")
DETECTED_BY = {"log_prob": "log p(x)", "confidence": "confidence"}
"""What a detector goes by, as people read it."""


def eps_text(norm: Any, eps: float) -> str:
    """An eps as people write it.

    >>> eps_text("linf", 8 / 255), eps_text("l2", 0.5), eps_text("l2", 1e-9)
    ('8/255', '0.5', '1e-09')
    """
    slug = ThreatModel(norm, eps).slug.removeprefix(f"{norm}-")
    return slug.replace("-255", "/255")


def sigma_text(sigma: float) -> str:
    """A noise level in pixel units as people write it; six digits of it are enough.

    >>> sigma_text(25 / 255), sigma_text(0.0980392), sigma_text(0.4)
    ('σ 25/255', 'σ 25/255', 'σ 0.4')
    """
    levels = 255 * sigma
    grey = sigma < 0.2 and abs(levels - round(levels)) < 1e-4
    return f"σ {round(levels)}/255" if grey else f"σ {sigma:g}"


def format_value(metric: MetricLine, value: float | None = None, size: float | None = None) -> str:
    """A number as the report shows it: shares in percent, others as they are; gains with their sign, unless
    all digits are 0. ``size``: of the number that decides how many digits there are, if not its own."""
    name, value = metric["metric"], metric["value"] if value is None else value
    scale = 100 if name in SHARES else 1
    digits = _digits(name, scale * abs(value if size is None else size))
    text = f"{scale * value:+.{digits}f}"
    signed = text.strip("+-0.") and (name in SIGNED or value < 0)
    return text.replace("-", "−") if signed else text[1:]


def _digits(name: str, size: float) -> int:
    if name in WIDE and size >= 100:
        return 0
    if name == "guidance_gain" and size < 1:  # on colour pictures a label is worth little
        return 2
    return DIGITS.get(name, 1)


def format_interval(metric: MetricLine) -> str:
    """The 95 % interval of a number, such as 82.5–93.4 or −1.3 to 2.0."""
    ends = metric["ci_low"], metric["ci_high"]
    size = max(map(abs, ends))
    low, high = (format_value(metric, end, size).removeprefix("+") for end in ends)
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


def foreign_name(detail: dict[str, Any]) -> str:
    """A foreign set as people read it: one that did not go through the data's codec says so."""
    return f"{detail['data']}{', raw (confounded)' if 'confounded' in detail else ''}"
