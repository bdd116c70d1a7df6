"""The charts of the page: accuracy against eps, calibration, ROC curves, gradients.

Every chart also describes its content in words, as the text alternative of its SVG.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from robustgen.metrics import calibration, ood, selective
from robustgen.metrics.rows import Run, log_odds
from robustgen.report.content import (
    EvaluationEntry,
    MetricEntry,
    Numbers,
    Summary,
    by_key,
    key_of,
    names_of,
    of_kind,
    stochastic,
    worst_case_variant,
)
from robustgen.report.formats import NORMS, eps_text, foreign_name, format_value
from robustgen.report.plots import Chart, Series, reliability_svg
from robustgen.threat import worst_name
from robustgen.types import Norm


@dataclass(frozen=True)
class Figure:
    """A chart with a caption; ``legend`` lists (name, colour index) of its lines."""

    title: str
    svg: str
    legend: list[tuple[str, int]]
    note: str = ""


# --- accuracy against eps --------------------------------------------------------------------------


def curves(content: Summary) -> list[Figure]:
    """For each norm, worst-case accuracy against eps, from eps = 0 (clean); for stochastic models by majority
    of their draws."""
    numbers = by_key(content)
    attacks = of_kind(content, "attack")
    sizes = {worst_name(d["norm"], d["eps"]): (d["norm"], d["eps"]) for d in attacks}
    return [
        figure
        for norm in NORMS
        if (figure := _curve(content, numbers, norm, sorted(e for n, e in sizes.values() if n == norm)))
        is not None
    ]


def _curve(content: Summary, numbers: Numbers, norm: Norm, all_eps: list[float]) -> Figure | None:
    lines, words = [], []
    for index, model in enumerate(names_of(content)):
        variant = worst_case_variant(content, model)
        points = [(0.0, numbers.get((model, "clean", variant, "accuracy")))]
        points += [
            (eps, numbers.get((model, worst_name(norm, eps), variant, "robust_accuracy"))) for eps in all_eps
        ]
        known = [(eps, metric) for eps, metric in points if metric is not None]
        if len(known) > 1:
            lines.append(line_of(model, index, [eps for eps, _ in known], [m for _, m in known], 100))
            values = ", ".join(f"{100 * m['value']:.1f} at {eps_text(norm, e) if e else 0}" for e, m in known)
            words.append(f"{model}: {values}")
    if not lines:
        return None
    title = f"Accuracy under attack, {NORMS[norm]}"
    chart = Chart(
        title, "; ".join(words), "perturbation size eps (pixel units)", "worst-case accuracy, %", lines,
        y_range=(0, 100),
    )  # fmt: skip
    random = sorted(stochastic(content))
    note = f"By majority of their draws: {', '.join(random)}." if random else ""
    return drawn_figure(title, chart, note)


def line_of(name: str, index: int, x: list[float], metrics: list[MetricEntry], scale: float = 1.0) -> Series:
    """A model's line through metrics, with their intervals."""
    low, high = ([scale * m["ci_low"] for m in metrics], [scale * m["ci_high"] for m in metrics])
    return Series(name, index, x, [scale * m["value"] for m in metrics], low, high)


def drawn_figure(title: str, chart: Chart, note: str = "") -> Figure:
    """A chart with its legend."""
    return Figure(title, chart.svg(), [(series.name, series.index) for series in chart.series], note)


# --- calibration -----------------------------------------------------------------------------------


def reliability_diagrams(content: Summary, runs: list[Run]) -> list[Figure]:
    """A reliability diagram for each model, of the clean rows without temperature."""
    numbers = by_key(content)
    found = []
    for run in runs:
        rows = run.first("clean")
        if rows is None:
            continue
        bins = calibration.reliability(np.exp(rows.log_probabilities), rows.labels)
        full = bins.size > 0
        confidence, accuracy = bins.confidence[full].tolist(), bins.accuracy[full].tolist()
        error = numbers.get((run.model, "clean", "", "ece"))
        words = "; ".join(
            f"confidence {c:.2f}: {a:.2f} right" for c, a in zip(confidence, accuracy, strict=True)
        )
        share = (bins.size[full] / len(rows)).tolist()
        svg = reliability_svg(f"Reliability of {run.model}", words, confidence, accuracy, share)
        note = f"ECE {format_value(error)} %" if error else ""
        found.append(Figure(run.model, svg, [], note))
    return found


LOWEST_COVERAGE = 0.02  # below, the error rate of so few pictures is mostly noise


def risk_coverage_chart(content: Summary, runs: list[Run]) -> Figure | None:
    """Every model's error rate on its most confident clean pictures, against their share (coverage)."""
    numbers, lines, words = by_key(content), [], []
    for index, run in enumerate(runs):
        rows = run.first("clean")
        if rows is None:
            continue
        right = rows.prediction == rows.labels
        curve = selective.risk_coverage(log_odds(rows.logits), right)
        kept = np.unique(np.linspace(LOWEST_COVERAGE * len(right), len(right) - 1, 200).astype(int))
        x, y = 100 * curve.coverage[kept], 100 * curve.risk[kept]
        lines.append(Series(run.model, index, x.tolist(), y.tolist(), markers=False))
        area = numbers.get((run.model, "clean", "", "aurc"))
        words.append(f"{run.model}: AURC {100 * area['value']:.2f}" if area else run.model)
    if not lines:
        return None
    title = "Risk against coverage"
    top = max(1.0, *(y for line in lines for y in line.y))
    chart = Chart(
        title, "; ".join(words), "pictures answered, most confident first, %", "wrong among them, %", lines,
        x_range=(0, 100), y_range=(0, 1.05 * top),
    )  # fmt: skip
    return drawn_figure(title, chart)


# --- foreign pictures ------------------------------------------------------------------------------


def roc_curves(content: Summary, runs: list[Run]) -> list[Figure]:
    """For each foreign set, the ROC curve of every model's energy score."""
    return [
        replace(figure, note=_codec_note(content, detail))
        for detail in of_kind(content, "ood")
        if (figure := _roc(content, runs, detail["name"], foreign_name(detail))) is not None
    ]


def _codec_note(content: Summary, detail: EvaluationEntry) -> str:
    """How far the file format alone separates the sets, by a statistic of the pictures (fine chroma)."""
    parts = [f"Confounded: {detail['confounded']}."] if "confounded" in detail else []
    chroma = next((m for m in content["metrics"] if key_of(m) == (detail["name"], "chroma", "auroc")), None)
    if chroma is not None:
        parts.append(f"Fine chroma alone, without a model: AUROC {format_value(chroma)}.")
    return " ".join(parts)


def _roc(content: Summary, runs: list[Run], evaluation: str, data: str) -> Figure | None:
    numbers, lines, words = by_key(content), [], []
    for index, run in enumerate(runs):
        clean, found = run.first("clean"), run.evaluations.get(evaluation)
        if clean is None or found is None or found.rows is None:
            continue
        curve = ood.roc(ood.scores(clean)["energy"], ood.scores(found.rows)["energy"])
        x, y = _corners(100 * curve.foreign, 100 * curve.own)
        lines.append(Series(run.model, index, x, y, markers=False))
        area = numbers.get((run.model, evaluation, "energy", "auroc"))
        words.append(f"{run.model}: AUROC {100 * area['value']:.1f}" if area else run.model)
    if not lines:
        return None
    title = f"{content['data']['name']} against {data}"
    chart = Chart(
        title, "; ".join(words), f"{data} accepted, %", f"{content['data']['name']} accepted, %", lines,
        x_range=(0, 100), y_range=(0, 100), diagonal=True,
    )  # fmt: skip
    return drawn_figure(title, chart)


def _corners(x: np.ndarray, y: np.ndarray) -> tuple[list[float], list[float]]:
    """The corners of a step curve, thinned to some 300 points."""
    turns = np.r_[True, (np.diff(x)[1:] * np.diff(y)[:-1] != np.diff(x)[:-1] * np.diff(y)[1:]), True]
    keep = np.flatnonzero(turns)
    keep = np.unique(np.r_[keep[:: max(1, math.ceil(len(keep) / 300))], keep[-1]])
    return x[keep].tolist(), y[keep].tolist()


# --- gradients -------------------------------------------------------------------------------------


def gradient_charts(content: Summary) -> list[Figure]:
    """Guidance gain against sigma, and PSNR of the denoisers against sigma."""
    found: list[Figure] = []
    for detail in of_kind(content, "gradients"):
        evaluation, sigmas = detail["name"], detail["sigmas"]
        found += [
            f for f in (_gain(content, evaluation, sigmas), _denoising(content, evaluation, sigmas)) if f
        ]
    return found


def _gain(content: Summary, evaluation: str, sigmas: list[float]) -> Figure | None:
    lines = _against_sigma(content, evaluation, sigmas, "sigma-{:g}", "guidance_gain", 100)
    title = "Guidance gain"
    words = "; ".join(
        f"{s.name}: {', '.join(f'{y:+.1f} at {x:g}' for x, y in zip(s.x, s.y, strict=True))}" for s in lines
    )
    if not lines:
        return None
    low, high = min(y for s in lines for y in s.low), max(0.0, *(y for s in lines for y in s.high))
    floor = -2 * max(high, 10.0)  # the harm that a gradient can do has no bound
    chart = Chart(
        title, words, "noise σ (pixel units)", "error removed, %", lines,
        y_range=(min(0.0, max(low, floor)), 1.05 * high), zero_line=True,
    )  # fmt: skip
    under = [f"{s.name} ({_plain(min(s.y))} to {_plain(max(s.y))})" for s in lines if max(s.y) < floor]
    wholly = f"; wholly below: {', '.join(under)}" if under else ""
    note = "" if low >= floor else f"Lines that leave below {_plain(floor)} % are cut off{wholly}."
    return drawn_figure(title, chart, note)


def _plain(value: float) -> str:
    return f"{value:.0f}".replace("-", "−")


def _denoising(content: Summary, evaluation: str, sigmas: list[float]) -> Figure | None:
    lines = _against_sigma(content, evaluation, sigmas, "model-sigma-{:g}", "psnr", 1)
    shared = len(names_of(content))
    for place, (who, called) in enumerate((("reference", "reference denoiser"), ("wiener", "Wiener filter"))):
        given = _against_sigma(content, evaluation, sigmas, f"{who}-sigma-{{:g}}", "psnr", 1)[:1]
        lines += [Series(called, shared + place, s.x, s.y, s.low, s.high) for s in given]
    title = "Denoising"
    words = "; ".join(
        f"{s.name}: {', '.join(f'{y:.1f} dB at {x:g}' for x, y in zip(s.x, s.y, strict=True))}" for s in lines
    )
    chart = Chart(title, words, "noise σ (pixel units)", "PSNR, dB", lines)
    return drawn_figure(title, chart) if lines else None


def _against_sigma(
    content: Summary, evaluation: str, sigmas: list[float], variant: str, metric: str, scale: float
) -> list[Series]:
    numbers, found = by_key(content), []
    for index, model in enumerate(names_of(content)):
        read = [(s, numbers.get((model, evaluation, variant.format(s), metric))) for s in sorted(sigmas)]
        known = [(s, m) for s, m in read if m is not None]
        if known:
            found.append(line_of(model, index, [s for s, _ in known], [m for _, m in known], scale))
    return found
