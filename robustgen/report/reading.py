"""What the main table says, in a few plain sentences."""

from __future__ import annotations

from typing import Any

from robustgen.report.columns import Column
from robustgen.report.tables import Cell, MainTable

OPENINGS = {
    "accuracy": "On clean pictures",
    "robust_accuracy": "Under attack",
    "corruption_accuracy": "On corrupted pictures",
    "ece": "Confidence",
    "auroc": "Foreign pictures",
    "guidance_gain": "Class gradients",
    "psnr_gain": "Denoising",
}


def reading(table: MainTable) -> list[tuple[str, str]]:
    """(opening, sentence) for each kind of number in the table: its first column speaks for it, the
    worst case for attacks."""
    found = []
    for metric, opening in OPENINGS.items():
        places = [i for i, column in enumerate(table.columns) if column.key.metric == metric]
        if metric == "robust_accuracy":
            places = [i for i in places if table.columns[i].title == "worst case"]
        if metric in ("guidance_gain", "psnr_gain"):
            sentence = _gradients(table, places, metric)
            found += [(opening, sentence)] if sentence else []
            continue
        for i in places:
            sentence = _sentence(table.columns[i], _known(table, i))
            found.append((f"{opening}{_of(table.columns[i])}", sentence))
    return found


def _of(column: Column) -> str:
    if column.key.metric == "robust_accuracy":
        return column.group.removeprefix("Attacked")
    return f" ({column.title.split()[0]})" if column.key.metric == "auroc" else ""


def _known(table: MainTable, place: int) -> list[tuple[str, Cell]]:
    found = [(model["name"], cells[place]) for model, cells in table.rows]
    return [(name, cell) for name, cell in found if cell is not None]


def _sentence(column: Column, known: list[tuple[str, Cell]]) -> str:
    verb, unit = _words(column)
    ordered = sorted(known, key=lambda pair: pair[1].metric["value"], reverse=column.higher_is_better)
    (best, top), (worst, bottom) = ordered[0], ordered[-1]
    said = f"{best} {verb} {top.text}{unit} (95 % interval {top.interval})"
    if len(ordered) == 1:
        return f"{said}."
    ties = [name for name, cell in ordered[1:] if cell.mark]
    if len(ties) == len(ordered) - 1:
        return f"{said}, {worst} {bottom.text}{unit}; the paired tests tell no model from the best."
    told = f" Not told apart from the best: {', '.join(ties)}." if ties else ""
    return f"{said}, the most; {worst} {bottom.text}{unit}, the least.{told}".replace("the most", _extreme(column)[0]).replace(
        "the least", _extreme(column)[1]
    )


def _words(column: Column) -> tuple[str, str]:
    return {
        "accuracy": ("gets", " % right"),
        "robust_accuracy": ("keeps", " %"),
        "corruption_accuracy": ("gets", " % right"),
        "ece": ("is off by", " points"),
        "auroc": ("tells them from the data with an AUROC of", " %"),
    }[column.key.metric]


def _extreme(column: Column) -> tuple[str, str]:
    return ("the most", "the least") if column.higher_is_better else ("the least", "the most")


def _gradients(table: MainTable, places: list[int], metric: str) -> str:
    """Who helps and who harms, with 95 % confidence, at how many noise levels."""
    helps: dict[str, list[str]] = {}
    harms: dict[str, list[str]] = {}
    for i in places:
        for name, cell in _known(table, i):
            sigma = table.columns[i].title
            if cell.metric["ci_low"] > 0:
                helps.setdefault(name, []).append(sigma)
            elif cell.metric["ci_high"] < 0:
                harms.setdefault(name, []).append(sigma)
    if not places:
        return ""
    better, worse = {
        "guidance_gain": ("improve the reference denoiser", "harm it"),
        "psnr_gain": ("beat the Wiener filter", "fall behind it"),
    }[metric]
    parts = [f"{_list(who)} {what}" for who, what in ((helps, better), (harms, worse)) if who]
    return f"{'; '.join(parts) or 'no model differs from 0'} (95 % intervals on one side of 0)."


def _list(found: dict[str, list[str]]) -> str:
    return ", ".join(f"{name} at {', '.join(sigmas)}" for name, sigmas in found.items())


def flag_groups(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Flags, those of one wording together, the gravest first."""
    groups: dict[tuple[str, ...], dict[str, Any]] = {}
    for flag in content["flags"]:
        key = (flag["severity"], flag["flag"], flag["message"])
        group = groups.setdefault(key, {**flag, "models": [], "evaluations": []})
        for field, value in (("models", flag["model"]), ("evaluations", flag["evaluation"])):
            if value and value not in group[field]:
                group[field].append(value)
    rank = {"error": 0, "warning": 1, "info": 2}
    return sorted(groups.values(), key=lambda group: rank[group["severity"]])
