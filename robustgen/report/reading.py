"""What the main table says, in a few plain sentences."""

from __future__ import annotations

from typing import NamedTuple

from robustgen.metrics.intervals import holm
from robustgen.metrics.verdicts import MAJORITY
from robustgen.report.columns import Column
from robustgen.report.content import MetricLine
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


# Of a model alone, of the best, and of several that are the best.
WORDS = {
    "accuracy": ("gets right", "gets most right,", "get most right,"),
    "robust_accuracy": ("keeps", "withstands most,", "withstand most,"),
    "corruption_accuracy": ("gets right", "gets most right,", "get most right,"),
    "ece": ("is off by", "is nearest to the truth, off by", "are nearest to the truth, off by"),
    "auroc": (
        "tells them from the data with an AUROC of", "tells them best from the data, AUROC",
        "tell them best from the data, AUROC",
    ),
}  # fmt: skip


class Said(NamedTuple):
    """A sentence about a column of the main table, the ``place``-th."""

    opening: str
    sentence: str
    metric: str
    place: int


def reading(table: MainTable, doubts: Doubts) -> list[Said]:
    """An opening and a sentence for each kind of number in the table: its first column speaks for it, the
    worst case for attacks (of stochastic models: by majority, the only one that they have). A model whose
    number is doubted is called so."""
    found: list[Said] = []
    for metric, opening in OPENINGS.items():
        places = [i for i, column in enumerate(table.columns) if column.key.metric == metric]
        if metric == "robust_accuracy":
            places = [i for i in places if table.columns[i].key.evaluation.startswith("worst-")]
        if metric == "accuracy":
            places = [i for i in places if not table.columns[i].key.variant]
        if metric in ("guidance_gain", "psnr_gain"):
            sentence = _gradients(table, places, metric, doubts)
            # of several noise levels the one in the middle is drawn
            found += [Said(opening, sentence, metric, places[len(places) // 2])] if sentence else []
            continue
        for i in places:
            sentence = _sentence(table.columns[i], _called(table, i, doubts))
            found.append(Said(f"{opening}{_of(table.columns[i])}", sentence, metric, i))
    return found


def _of(column: Column) -> str:
    if column.key.metric == "robust_accuracy":
        by = ", by majority" if column.key.variant == MAJORITY else ""
        return column.group.removeprefix("Attacked") + by
    return f", {column.title}" if column.key.metric == "auroc" else ""


def _known(table: MainTable, place: int) -> list[tuple[str, Cell]]:
    found = [(model["name"], cells[place]) for model, cells in table.rows]
    return [(name, cell) for name, cell in found if cell is not None]


def _called(table: MainTable, place: int, doubts: Doubts) -> list[tuple[str, Cell]]:
    """As ``_known``, by what the sentence calls the models."""
    key = table.columns[place].key
    return [
        (f"{name} (doubted)" if (name, key.evaluation, key.metric) in doubts else name, cell)
        for name, cell in _known(table, place)
    ]


def _sentence(column: Column, known: list[tuple[str, Cell]]) -> str:
    ordered = sorted(known, key=lambda pair: pair[1].metric["value"], reverse=column.higher_is_better)
    (best, top), (_, bottom) = ordered[0], ordered[-1]
    unit = " points" if column.key.metric == "ece" else " %"
    value = f"{top.text}{unit} ({top.interval})"
    alone, first, several = WORDS[column.key.metric]
    if len(ordered) == 1:
        return f"{best} {alone} {value}."
    if top.text == bottom.text:
        return f"All models alike: {value}."
    bests, lasts = (
        [name for name, cell in ordered if cell.metric["value"] == end.metric["value"]]
        for end in (top, bottom)
    )
    level = [name for name, cell in ordered if cell.mark == "tied"]
    untested = [name for name, cell in ordered if cell.mark == "untested"]
    best, it = (best, "it") if len(bests) == 1 else (_and(bests), "them")
    first = first if len(bests) == 1 else several
    if len(bests) + len(level) == len(ordered):
        return (
            f"{best} {first} {value}, but no paired test tells {it} from the others; "
            f"last {_and(lasts)}, {bottom.text}{unit}."
        )
    told = f" Level with {it}: {', '.join(level)}." if level else ""
    few = f"Not tested against {it}, for too few common samples"
    told += f" {few}: {', '.join(untested)}." if untested else ""
    last = f"Last {'is' if len(lasts) == 1 else 'are'} {_and(lasts)}: {bottom.text}{unit}."
    return f"{best} {first} {value}.{told} {last}"


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _gradients(table: MainTable, places: list[int], metric: str, doubts: Doubts) -> str:
    """Who helps and who harms by tests against 0, corrected over all of them, and at which noise levels."""
    if not places:
        return ""
    better, worse = {
        "guidance_gain": ("improve{s} the reference denoiser", "make{s} the reference denoiser worse"),
        "psnr_gain": ("beat{s} the Wiener filter", "fall{s} behind it"),
    }[metric]
    parts = []
    cells = [(i, *pair) for i in places for pair in _called(table, i, doubts)]
    corrected = holm([_p_of_0(cell.metric) for _, _, cell in cells])
    differ = [found for found, p in zip(cells, corrected, strict=True) if p < ALPHA]
    for verb, sign in ((better, 1), (worse, -1)):
        levels: dict[str, list[str]] = {}
        for i, name, cell in differ:
            if sign * cell.metric["value"] > 0:
                levels.setdefault(name, []).append(table.columns[i].title.removeprefix("σ "))
        ending = "s" if len(levels) == 1 else ""
        parts += [f"{_with_levels(levels)} {verb.format(s=ending)}"] if levels else []
    said = "; ".join(parts) or "no model differs from 0"
    return f"{said} (tests against 0, Holm-corrected over all {len(cells)}, 5 %)."


def _p_of_0(metric: MetricLine) -> float:
    """How likely chance alone takes a number as far from 0: normal, as wide as its 95 % interval says."""
    from scipy.special import ndtr

    spread = (metric["ci_high"] - metric["ci_low"]) / (2 * 1.96)
    away = abs(metric["value"])
    return float(2 * ndtr(-away / spread)) if spread > 0 else float(away == 0)


def _with_levels(levels: dict[str, list[str]]) -> str:
    """Models, those with the same noise levels together."""
    together: dict[str, list[str]] = {}
    for name, sigmas in levels.items():
        together.setdefault(", ".join(sigmas), []).append(name)
    return "; ".join(f"{', '.join(names)} at σ {sigmas}" for sigmas, names in together.items())
