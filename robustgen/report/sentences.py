"""The sentences at the head of a section, generated from the numbers that it shows."""

from __future__ import annotations

import numpy as np

from robustgen.metrics import calibration
from robustgen.metrics.rows import Run
from robustgen.report.columns import headline_eps
from robustgen.report.content import Summary, by_key, key_of, names_of, of_kind, worst_case_variant
from robustgen.report.corruptions import Heat
from robustgen.report.costs import CostPoint
from robustgen.report.formats import (
    DETECTED_BY,
    foreign_name,
    format_interval,
    format_value,
    threat_text,
    time_text,
)
from robustgen.threat import worst_name

OVERHEAD = 5.0
"""Milliseconds: on one machine a small network took 0.7 in one run and 3.9 in another."""


def attacks(content: Summary) -> list[str]:
    """For each threat model, the models that lose the least and the most of their clean accuracy."""
    numbers, found = by_key(content), []
    for norm, eps in headline_eps(content):
        lost = {}
        for name in names_of(content):
            variant = worst_case_variant(content, name)
            clean = numbers.get((name, "clean", variant, "accuracy"))
            robust = numbers.get((name, worst_name(norm, eps), variant, "robust_accuracy"))
            if clean and robust:
                lost[name] = (clean["value"], robust["value"])
        if not lost:
            continue
        words = {name: f"{name} ({100 * a:.1f} to {100 * b:.1f} %)" for name, (a, b) in lost.items()}
        ordered = sorted(lost, key=lambda name: lost[name][0] - lost[name][1])
        where = f"Within {threat_text(norm, eps)}"
        falls = {round(a - b, 6) for a, b in lost.values()}
        if len(falls) == 1:
            alike = " alike" if len(ordered) > 1 else ""
            found.append(f"{where} accuracy falls{alike} for {', '.join(words[name] for name in ordered)}.")
        else:
            found.append(
                f"{where} accuracy falls least for {words[ordered[0]]}, most for {words[ordered[-1]]}."
            )
    return found


def guarded(content: Summary) -> list[str]:
    """For each detector, what remains of guarded accuracy without and with an attack that knows of it."""
    numbers, found = by_key(content), []
    for detail in of_kind(content, "detected"):
        name, remaining = detail["name"], []
        for model in names_of(content):
            unaware = numbers.get((model, name, "unaware", "guarded_accuracy"))
            aware = numbers.get((model, name, "", "guarded_accuracy"))
            if aware and unaware:
                remaining.append(f"{model} {100 * unaware['value']:.1f} and {100 * aware['value']:.1f} %")
        if remaining:
            found.append(
                f"With a detector that rejects {100 * detail['rejection']:g} % of clean pictures by "
                f"{DETECTED_BY[detail['score']]}, guarded accuracy within "
                f"{threat_text(detail['norm'], detail['eps'])} under attacks that do not know of it, and "
                f"under one that does: {'; '.join(remaining)}."
            )
    return found


def corruptions(heat: Heat | None) -> list[str]:
    """The hardest and the easiest type of corruption, and the model that suffers most from the hardest."""
    means = [(float(np.mean([c for c in cells if c is not None])), kind)
             for kind, cells in (heat.rows if heat else []) if any(c is not None for c in cells)]  # fmt: skip
    if heat is None or len(means) < 2:
        return []
    (low, hardest), (high, easiest) = min(means), max(means)
    worst = [(value, name) for kind, cells in heat.rows if kind == hardest
             for name, value in zip(heat.models, cells, strict=True) if value is not None]  # fmt: skip
    sentence = (
        f"Averaged over models and severities, {hardest} is hardest, with {100 * low:.1f} % accuracy, and "
        f"{easiest} easiest, with {100 * high:.1f} %."
    )
    least = min(worst)[0]
    last = [name for value, name in worst if value == least]
    if 1 == len(last) < len(worst):
        sentence += f" {last[0]} suffers most from {hardest}: {100 * least:.1f} %."
    elif len(worst) > 1:
        who = "All" if len(last) == len(worst) else ", ".join(last)
        sentence += f" {who} suffer equally from {hardest}: {100 * least:.1f} %."
    return [sentence]


def calibrated(runs: list[Run]) -> list[str]:
    """The most overconfident and the most underconfident model, by mean confidence minus accuracy."""
    gaps = {}
    for run in runs:
        rows = run.first("clean")
        if rows is not None:
            confidence, right = calibration.top_label(np.exp(rows.log_probabilities), rows.labels)
            gaps[run.model] = 100 * float(confidence.mean() - right.mean())
    if not gaps:
        return []
    high, low = max(gaps, key=gaps.__getitem__), min(gaps, key=gaps.__getitem__)
    over, under = gaps[high] >= 0.05, gaps[low] <= -0.05
    sentence = (
        f"Most overconfident is {high}, by {gaps[high]:.1f} points on average."
        if over
        else "No model is overconfident on average."
    )
    return [sentence + (f" Most underconfident is {low}, by {-gaps[low]:.1f} points." if under else "")]


def foreign(content: Summary) -> list[str]:
    """For each foreign set, the lowest and the highest FPR at 95 % TPR by energy."""
    found, own = [], content["data"]["name"]
    for detail in of_kind(content, "ood"):
        name = detail["name"]
        rates = [m for m in content["metrics"] if key_of(m) == (name, "energy", "fpr95_at_id_tpr")]
        if not rates:
            continue
        ordered = sorted(rates, key=lambda m: m["value"])
        ends = [
            f"{format_value(m)} % ({m['model']}, {format_interval(m)})" for m in (ordered[0], ordered[-1])
        ]
        found.append(
            f"At the energy threshold that accepts 95 % of {own}, {' to '.join(dict.fromkeys(ends))} of "
            f"{foreign_name(detail)} are accepted too."
        )
    return found


def costs(points: list[CostPoint]) -> list[str]:
    """The model with the fastest and the one with the slowest clean evaluation."""
    if len(points) < 2:
        return []
    small = f" Below {OVERHEAD:g} ms most is the overhead of a call, not the network's work: it ranks nobody."
    cheap, dear = (pick(points, key=lambda p: p.milliseconds) for pick in (min, max))
    return [
        "The evaluation of a clean picture took from "
        f"{time_text(cheap.milliseconds)} ms ({cheap.model}) to "
        f"{time_text(dear.milliseconds)} ms ({dear.model}), beside whatever else the machine did."
        f"{small if cheap.milliseconds < OVERHEAD else ''}"
    ]
