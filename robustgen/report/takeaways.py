"""What the main table says, in a few plain sentences."""

from __future__ import annotations

from typing import NamedTuple

from robustgen.metrics.intervals import Z95, holm
from robustgen.metrics.verdicts import MAJORITY
from robustgen.report.columns import Column
from robustgen.report.content import MetricEntry
from robustgen.report.flags import Doubts
from robustgen.report.tables import ALPHA, Cell, MainTable

OPENINGS = {
    "accuracy": "On clean pictures",
    "robust_accuracy": "Under attack",
    "corruption_accuracy": "On corrupted pictures",
    "ece": "Confidence",
    "auroc": "Foreign pictures",
    "guidance_gain": "Class gradients",
    "psnr_gain": "Denoising",
}
"""The metrics that have sentences, with the question that each begins with."""
GAINS = ("guidance_gain", "psnr_gain")


class Verbs(NamedTuple):
    """What comes between the names and the number, for the only model, for the best, and for several best."""

    alone: str
    best: str
    several: str


RIGHT = Verbs("gets right", "gets most right,", "get most right,")
VERBS = {
    "accuracy": RIGHT,
    "robust_accuracy": RIGHT,
    "corruption_accuracy": RIGHT,
    "ece": Verbs(
        "has an ECE of", "is best calibrated, with an ECE of", "are best calibrated, with an ECE of"
    ),
    "auroc": Verbs(
        "tells them from the data with an AUROC of",
        "tells them from the data best, with an AUROC of",
        "tell them from the data best, with an AUROC of",
    ),
}


class Takeaway(NamedTuple):
    """A sentence about a metric; ``column`` is the index of the main table's column that illustrates it."""

    opening: str
    sentence: str
    metric: str
    column: int


def takeaways(table: MainTable, doubts: Doubts) -> list[Takeaway]:
    """The takeaways of the main table, in the order of OPENINGS.

    Accuracies, ECE and AUROC have one for each column (under attack: for each worst case, which stochastic
    models have by majority only). A gain has one over all noise levels, drawn at the middle one. A model
    whose number has a doubt is marked "(doubted)".
    """
    found: list[Takeaway] = []
    for metric, opening in OPENINGS.items():
        places = [i for i, column in enumerate(table.columns) if column.key.metric == metric]
        if metric == "robust_accuracy":
            places = [i for i in places if table.columns[i].key.evaluation.startswith("worst-")]
        if metric == "accuracy":
            places = [i for i in places if not table.columns[i].key.variant]
        if metric in GAINS:
            sentence = _gains(table, places, metric, doubts)
            found += [Takeaway(opening, sentence, metric, places[len(places) // 2])] if sentence else []
            continue
        for i in places:
            sentence = _ranking(table.columns[i], _called(table, i, doubts))
            found.append(Takeaway(f"{opening}{_of(table.columns[i])}", sentence, metric, i))
    return found


def _of(column: Column) -> str:
    """What follows the opening: the threat model, or the foreign set and the score."""
    if column.key.metric == "robust_accuracy":
        by = ", by majority" if column.key.variant == MAJORITY else ""
        return column.group.removeprefix("Attacked") + by
    return f", {column.title}" if column.key.metric == "auroc" else ""


def _known(table: MainTable, place: int) -> list[tuple[str, Cell]]:
    """The models with a number in a column."""
    found = [(model["name"], cells[place]) for model, cells in table.rows]
    return [(name, cell) for name, cell in found if cell is not None]


def _called(table: MainTable, place: int, doubts: Doubts) -> list[tuple[str, Cell]]:
    """As ``_known``, with doubted models marked."""
    key = table.columns[place].key
    return [
        (f"{name} (doubted)" if (name, key.evaluation, key.metric) in doubts else name, cell)
        for name, cell in _known(table, place)
    ]


def _ranking(column: Column, known: list[tuple[str, Cell]]) -> str:
    """The best model with its number, the models tied with it, those not tested against it, and the last."""
    ordered = sorted(known, key=lambda pair: pair[1].metric["value"], reverse=column.higher_is_better)
    top, bottom = ordered[0][1], ordered[-1][1]
    unit = " points" if column.key.metric == "ece" else " %"
    value = f"{top.text}{unit} ({top.interval})"
    verbs = VERBS[column.key.metric]
    if len(ordered) == 1:
        return f"{ordered[0][0]} {verbs.alone} {value}."
    if top.text == bottom.text:
        return f"All models alike: {value}."
    best, last = (
        [name for name, cell in ordered if cell.metric["value"] == end.metric["value"]]
        for end in (top, bottom)
    )
    tied = [name for name, cell in ordered if cell.mark == "tied"]
    untested = [name for name, cell in ordered if cell.mark == "untested"]
    it, verb = ("it", verbs.best) if len(best) == 1 else ("them", verbs.several)
    first = f"{_and(best)} {verb} {value}"
    if len(best) + len(tied) == len(ordered):
        return (
            f"{first}, but no other model differs significantly from {it}; "
            f"last {_and(last)}, {bottom.text}{unit}."
        )
    parts = [f"{first}."]
    if tied:
        parts.append(f"Tied with {it}: {', '.join(tied)}.")
    if untested:
        parts.append(f"Not tested against {it}, for too few common samples: {', '.join(untested)}.")
    parts.append(f"Last {'is' if len(last) == 1 else 'are'} {_and(last)}: {bottom.text}{unit}.")
    return " ".join(parts)


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _gains(table: MainTable, places: list[int], metric: str, doubts: Doubts) -> str:
    """The models whose gain differs from 0, by tests that are corrected over all of them, and at which noise
    levels."""
    if not places:
        return ""
    better, worse = {
        "guidance_gain": ("Improve the reference denoiser", "Make it worse"),
        "psnr_gain": ("Better than the Wiener filter", "Worse"),
    }[metric]
    cells = [(i, *pair) for i in places for pair in _called(table, i, doubts)]
    corrected = holm([_p_of_0(cell.metric) for _, _, cell in cells])
    differ = [found for found, p in zip(cells, corrected, strict=True) if p < ALPHA]
    parts = []
    for label, sign in ((better, 1), (worse, -1)):
        levels: dict[str, list[str]] = {}
        for i, name, cell in differ:
            if sign * cell.metric["value"] > 0:
                levels.setdefault(name, []).append(table.columns[i].title.removeprefix("σ "))
        parts += [f"{label}: {_with_levels(levels)}."] if levels else []
    found = " ".join(parts) or "No model differs from 0."
    return f"{found} (Tests against 0, Holm-corrected over all {len(cells)}, 5 %.)"


def _p_of_0(metric: MetricEntry) -> float:
    """Two-sided p of "the metric is 0", by a normal distribution as wide as the 95 % interval."""
    from scipy.special import ndtr

    spread = (metric["ci_high"] - metric["ci_low"]) / (2 * Z95)
    away = abs(metric["value"])
    return float(2 * ndtr(-away / spread)) if spread > 0 else float(away == 0)


def _with_levels(levels: dict[str, list[str]]) -> str:
    """The models with their noise levels; models with the same levels are grouped."""
    together: dict[str, list[str]] = {}
    for name, sigmas in levels.items():
        together.setdefault(", ".join(sigmas), []).append(name)
    return "; ".join(f"{', '.join(names)} at σ {sigmas}" for sigmas, names in together.items())
