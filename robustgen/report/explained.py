"""Gradients beyond guidance gain, on the page: a sentence, a scatter plot and a panel of pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from robustgen.metrics.rows import Run
from robustgen.report.content import MetricEntry, Summary, by_key, names_of
from robustgen.report.figures import Figure
from robustgen.report.formats import format_interval, format_value, sigma_text
from robustgen.report.pictures import SEARCHED, Gallery, Picture, given, signed_png
from robustgen.report.plots import Chart, Series
from robustgen.store import RunStore

Array = np.ndarray
SHOWN = 60  # points of a model
STORED = ("noisy", "reference", "perturbation", "right", "other", "own_right", "own_other")


def explained_figures(content: Summary, runs: list[Run]) -> list[Figure]:
    """The first-order radius of each sample against the distance to its nearest adversarial picture, under
    ``sentence``; the sentence alone where there is nothing to draw."""
    note = sentence(content)
    points = [point for run in runs for point in _points(run, names_of(content).index(run.model))]
    if not points:
        return [Figure("What gradients account for", "", [], note)] if note else []
    most = 1.05 * max(value for p in points for value in (*p.x, *p.y))
    numbers = by_key(content)
    words = [
        f"{run.model}: rank correlation {format_value(metric)}"
        for run in runs
        for evaluation, _ in run.tables("explained")
        if (metric := numbers.get((run.model, evaluation, "", "radius_correlation")))
    ]
    title = "First-order radius and distance"
    chart = Chart(
        title, "; ".join(words), "first-order radius, L2 (pixel units)", "distance of the nearest found",
        points, x_range=(0, most), y_range=(0, most), diagonal=True,
    )  # fmt: skip
    legend = list(dict.fromkeys((p.name, p.index) for p in points))
    return [Figure(title, chart.svg(), legend, note)]


def _points(run: Run, index: int) -> list[Series]:
    """A series a sample, since a line between samples would say nothing."""
    for _, table in run.tables("explained"):
        first = table[table["sigma"] == table["sigma"].min()].sort_values("sample_id")
        known = first.dropna(subset=["first_order", "distance"])
        known = known[(known["margin"] > 0) & (known["distance"] > 0)].head(SHOWN)
        pairs = known[["first_order", "distance"]].to_numpy(np.float64).tolist()
        return [Series(run.model, index, [x], [y]) for x, y in pairs]
    return []


# --- in words --------------------------------------------------------------------------------------


def sentence(content: Summary) -> str:
    """The metrics of every model with their intervals; "" where there are none."""
    parts = [
        _ranked(
            content, "gradient_efficiency",
            "Gradient efficiency, the share of the label's information that the class gradient accounts for",
            " %; 100 is the true posterior's, below 0 the gradient misleads",
        ),
        _spans(content),
        _ranked(
            content, "radius_correlation", "Rank correlation of first-order radius and distance", ""
        ),
        _branches(content),
    ]  # fmt: skip
    return " ".join(part for part in parts if part)


def _ranked(content: Summary, metric: str, opening: str, unit: str) -> str:
    found = [m for m in content["metrics"] if m["metric"] == metric]
    found.sort(key=lambda m: -m["value"])
    shown = [f"{m['model']} {format_value(m)} ({format_interval(m)})" for m in found]
    return f"{opening}: {', '.join(shown)}{unit}." if shown else ""


def _spans(content: Summary) -> str:
    """Each model's largest share over noise levels, beside that of a random span at the same level."""
    numbers = by_key(content)
    best: dict[str, MetricEntry] = {}
    for m in content["metrics"]:
        if m["metric"] == "span_share" and m["value"] > best.get(m["model"], m)["value"] - 1e-12:
            best[m["model"]] = m
    shown = []
    for m in sorted(best.values(), key=lambda m: -m["value"]):
        chance = numbers[m["model"], m["evaluation"], m["variant"], "random_span_share"]
        shown.append(
            f"{m['model']} {format_value(m)} % at {_level(m)} "
            f"({format_interval(m)}; random span {format_value(chance)})"
        )
    opening = "Share of the nearest wrong picture's perturbation in the span of the reference's classes:"
    return f"{opening} {', '.join(shown)}." if shown else ""


def _branches(content: Summary) -> str:
    by_model: dict[str, list[MetricEntry]] = {}
    for m in content["metrics"]:
        if m["metric"] == "branch_cosine":
            by_model.setdefault(m["model"], []).append(m)
    shown = [
        f"{model} {', '.join(f'{format_value(m)} at {_level(m)}' for m in found)}"
        for model, found in by_model.items()
    ]
    opening = "Cosine of the logits' gradient and the difference of the model's own denoisers:"
    return f"{opening} {'; '.join(shown)}." if shown else ""


def _level(metric: MetricEntry) -> str:
    return sigma_text(float(metric["variant"].removeprefix("sigma-")))


# --- pictures --------------------------------------------------------------------------------------


def explained_gallery(pairs: list[tuple[RunStore, Run]], clean: Array) -> Gallery | None:
    """One stored sample at every noise level, a row for each model."""
    tables = {run.model: table for store, run in pairs if (table := _stored(store, run)) is not None}
    if not tables:
        return None
    sample = _sample(tables)
    if sample is None:
        return None
    rows = {model: t[t["sample_id"] == sample].set_index("sigma") for model, t in tables.items()}
    first = next(iter(rows.values()))
    sigmas = sorted(first.index)
    shape = clean.shape[1:]
    shown = [("all models", [given(first.loc[s], clean[sample]) for s in sigmas])]
    shown += [(model, [_ways(t.loc[s], shape, s == sigmas[0]) for s in sigmas]) for model, t in rows.items()]
    intro = (
        f"Sample {sample} at {len(sigmas)} noise levels. Given to all models: the clean picture, the noisy "
        "one, and the output of the reference denoiser. For each model: the perturbation to its nearest "
        "wrong picture; its class gradient σ²∇log p for the label, and for the class that the attack "
        "reaches; and the second minus the first, the adversarial gradient, which for the true posterior is "
        "a difference of class-conditional denoisers. For models with denoisers of their own, that "
        "difference too. Grey is 0; each picture is scaled to its own largest pixel, which stands below it."
    )
    heads = [sigma_text(s) for s in sigmas]
    return Gallery("Class gradients and adversarial gradients", intro, heads, shown)


def _stored(store: RunStore, run: Run) -> pd.DataFrame | None:
    for evaluation, _ in run.tables("explained"):
        table = store.table(evaluation, "explained", SEARCHED)
        if table is not None:
            kept = table.to_pandas().dropna(subset=["noisy", "reference"])
            return kept if len(kept) else None
    return None


def _sample(tables: dict[str, pd.DataFrame]) -> int | None:
    """The first sample among those that all models have and that the attack moves for the most models."""
    ids = set.intersection(*(set(t["sample_id"]) for t in tables.values()))
    moved = {i: sum((t["distance"][t["sample_id"] == i] > 0).any() for t in tables.values()) for i in ids}
    return min(ids, key=lambda i: (-moved[i], i), default=None)


def _ways(row: pd.Series, shape: tuple[int, ...], first: bool) -> list[Picture]:
    found = {name: _picture(row[name], shape) for name in STORED if row[name] is not None}
    shown = []
    if first and "perturbation" in found:
        shown.append(_signed(found["perturbation"], "attack", "perturbation of the nearest wrong picture"))
    if "right" in found:
        shown.append(_signed(found["right"], "label", "class gradient for the label"))
        shown.append(
            _signed(found["other"], f"{row['other_label']:.0f}", "class gradient for the attack's class")
        )
        shown.append(_signed(found["other"] - found["right"], "difference", "the adversarial gradient"))
    if "own_right" in found:
        own = found["own_other"] - found["own_right"]
        shown.append(
            _signed(own, "own denoisers", "difference of the model's own class-conditional denoisers")
        )
    return shown


def _signed(picture: Array, caption: str, alt: str) -> Picture:
    scale = float(np.abs(picture).max()) or 1.0
    return Picture(signed_png(picture, scale), alt, f"{caption} ±{scale:.2g}")


def _picture(values: Any, shape: tuple[int, ...]) -> Array:
    return np.asarray(values, dtype=np.float64).reshape(shape)
