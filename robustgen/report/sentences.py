"""A sentence a section of the page, generated from the figures that the section draws."""

from __future__ import annotations

from typing import Any

import numpy as np

from robustgen.metrics import calibration
from robustgen.metrics.rows import Run
from robustgen.metrics.verdicts import MAJORITY
from robustgen.report.columns import headline_eps
from robustgen.report.content import by_key, names_of, of_kind, stochastic
from robustgen.report.corruptions import Heat
from robustgen.report.costs import CostPoint
from robustgen.report.formats import (
    DETECTED_BY,
    NORMS,
    eps_text,
    foreign_name,
    format_interval,
    format_value,
    time_text,
)
from robustgen.threat import worst_name

OVERHEAD = 5.0
"""Milliseconds: on one machine a small network took 0.7 in one run and 3.9 in another."""


def attacks(content: dict[str, Any]) -> list[str]:
    """From clean pictures to the attacks of a size: the most and the least that a model loses, which no
    test compares, a sentence a threat."""
    numbers, found = by_key(content), []
    drawn = stochastic(content)
    for norm, eps in headline_eps(content):
        lost = {}
        for name in names_of(content):
            by = MAJORITY if name in drawn else ""
            clean = numbers.get((name, "clean", by, "accuracy"))
            robust = numbers.get((name, worst_name(norm, eps), by, "robust_accuracy"))
            if clean and robust:
                lost[name] = (clean["value"], robust["value"])
        if not lost:
            continue
        words = {name: f"{name} ({100 * a:.1f} to {100 * b:.1f} %)" for name, (a, b) in lost.items()}
        ordered = sorted(lost, key=lambda name: lost[name][0] - lost[name][1])
        where = f"Within {NORMS[norm]} ≤ {eps_text(norm, eps)}"
        falls = {round(a - b, 6) for a, b in lost.values()}
        if len(falls) == 1:
            alike = " alike" if len(ordered) > 1 else ""
            found.append(f"{where} accuracy falls{alike}: {', '.join(words[name] for name in ordered)}.")
        else:
            found.append(f"{where} accuracy falls least and most: {words[ordered[0]]}, {words[ordered[-1]]}.")
    return found


def guarded(content: dict[str, Any]) -> list[str]:
    """What stands of a detector once the attack knows of it, a sentence a detector."""
    numbers, found = by_key(content), []
    for detail in of_kind(content, "detected"):
        name, said = detail["name"], []
        for model in names_of(content):
            unaware = numbers.get((model, name, "unaware", "guarded_accuracy"))
            aware = numbers.get((model, name, "", "guarded_accuracy"))
            if aware and unaware:
                said.append(f"{model} {100 * unaware['value']:.1f} and {100 * aware['value']:.1f} %")
        if said:
            found.append(
                f"Where {100 * detail['rejection']:g} % of clean pictures are rejected by "
                f"{DETECTED_BY[detail['score']]}, this stands of {NORMS[detail['norm']]} ≤ "
                f"{eps_text(detail['norm'], detail['eps'])} under attacks that do not know of it, and under "
                f"one that does: {'; '.join(said)}."
            )
    return found


def corruptions(heat: Heat | None) -> list[str]:
    """Which type is hardest and which easiest, on average over models and severities."""
    means = [(float(np.mean([c for c in cells if c is not None])), kind)
             for kind, cells in (heat.rows if heat else []) if any(c is not None for c in cells)]  # fmt: skip
    if heat is None or len(means) < 2:
        return []
    (low, hardest), (high, easiest) = min(means), max(means)
    worst = [(value, name) for kind, cells in heat.rows if kind == hardest
             for name, value in zip(heat.models, cells, strict=True) if value is not None]  # fmt: skip
    said = (
        f"Hardest is {hardest}, {100 * low:.1f} % right over all models and severities; easiest {easiest}, "
    )
    said += f"{100 * high:.1f} %."
    least = min(worst)[0]
    last = [name for value, name in worst if value == least]
    if 1 == len(last) < len(worst):
        said += f" {last[0]} suffers most from {hardest}: {100 * least:.1f} %."
    elif len(worst) > 1:
        who = "All" if len(last) == len(worst) else ", ".join(last)
        said += f" {who} suffer alike from {hardest}: {100 * least:.1f} %."
    return [said]


def calibrated(runs: list[Run]) -> list[str]:
    """Whose confidence is furthest above, and whose furthest below, the share right."""
    gaps = {}
    for run in runs:
        rows = run.first("clean")
        if rows is not None:
            confidence, right = calibration.top_label(np.exp(rows.log_probabilities), rows.labels)
            gaps[run.model] = 100 * float(confidence.mean() - right.mean())
    if not gaps:
        return []
    high, low = max(gaps, key=gaps.__getitem__), min(gaps, key=gaps.__getitem__)
    parts = [f"{high}, by {gaps[high]:.1f} points on average"] if gaps[high] >= 0.05 else []
    said = f"Most too sure is {parts[0]}." if parts else "No model is too sure on average."
    return [said + (f" Most too unsure is {low}, by {-gaps[low]:.1f}." if gaps[low] <= -0.05 else "")]


def foreign(content: dict[str, Any]) -> list[str]:
    """What is let in at 95 % of the data accepted, by energy, a sentence a foreign set."""
    found, own = [], content["data"]["name"]
    for detail in of_kind(content, "ood"):
        name = detail["name"]
        let_in = {
            m["model"]: m for m in content["metrics"]
            if (m["evaluation"], m["variant"], m["metric"]) == (name, "energy", "fpr95_at_id_tpr")
        }  # fmt: skip
        if not let_in:
            continue
        ordered = sorted(let_in, key=lambda model: let_in[model]["value"])
        ends = [
            f"{m} {format_value(let_in[m])} ({format_interval(let_in[m])})" for m in (ordered[0], ordered[-1])
        ]
        said = f"Where 95 % of {own} are accepted by energy, so many % of {foreign_name(detail)} are let in: "
        found.append(f"{said}{'; '.join(dict.fromkeys(ends))}.")
    return found


def costs(points: list[CostPoint]) -> list[str]:
    """The cheapest and the dearest."""
    if len(points) < 2:
        return []
    small = f" Below {OVERHEAD:g} ms most is the overhead of a call, not the network's work: it ranks nobody."
    cheap, dear = (pick(points, key=lambda p: p.milliseconds) for pick in (min, max))
    return [
        "All that was asked of a clean picture took from "
        f"{time_text(cheap.milliseconds)} ms ({cheap.model}) to "
        f"{time_text(dear.milliseconds)} ms ({dear.model}), beside whatever else the machine did."
        f"{small if cheap.milliseconds < OVERHEAD else ''}"
    ]
