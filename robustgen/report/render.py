"""OUT/index.html: one self-contained page from summary.json and stored rows."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from robustgen.disk import atomic, remove_stale
from robustgen.errors import UserError
from robustgen.metrics.rows import Run, read_run
from robustgen.places import resolve_path
from robustgen.report import corruptions, costs, figures, glance, pictures, sentences
from robustgen.report.citations import citations
from robustgen.report.content import ModelEntry, Summary, asked
from robustgen.report.explained import explained_figures, explained_gallery
from robustgen.report.flags import doubts_of, flag_groups
from robustgen.report.formats import time_text
from robustgen.report.plots import marker, style
from robustgen.report.summary import read_summary
from robustgen.report.tables import DetailTable, detail_table, main_table, paired_tests
from robustgen.report.takeaways import GAINS, Takeaway, takeaways
from robustgen.store import RunStore

SECTIONS = {
    "reading": "At a glance", "table": "Table", "flags": "Doubts", "attacks": "Attacks",
    "corruptions": "Corruptions", "calibration": "Calibration", "foreign": "OOD", "gradients": "Gradients",
    "cost": "Cost", "examples": "Examples", "tests": "Tests", "run": "Run", "again": "Check it",
}  # fmt: skip
"""The sections of the page by id, with their names in the navigation."""
DETAILS = {
    "attacks": ("Every attack, and every stage of a cascade", ("robust_accuracy", "guarded_accuracy")),
    "corruptions": ("Every corruption", ("corruption_accuracy", "relative_corruption_error")),
    "calibration": (
        "All calibration metrics",
        ("ece", "adaptive_ece", "classwise_ece", "nll", "brier", "brier_reliability", "brier_resolution",
         "brier_uncertainty", "aurc", "e_aurc", "temperature", "bits_per_dim"),
    ),
    "foreign": (
        "All scores and OOD metrics",
        ("auroc", "aupr_in", "aupr_out", "average_precision_in", "average_precision_out", "fpr95_at_id_tpr",
         "fpr95_at_ood_tpr"),
    ),
    "gradients": (
        "All noise levels",
        ("guidance_gain", "psnr", "psnr_gain", "gradient_efficiency", "gradient_information",
         "label_information", "span_share", "random_span_share", "radius_correlation",
         "radius_partial_correlation", "margin_correlation", "radius_ratio", "minimal_distance",
         "branch_cosine", "branch_relative_error"),
    ),
}  # fmt: skip
"""The table of all metrics at the end of a section: its title, and the metrics in it."""


def render(out: Path) -> Path:
    """Write OUT/index.html from OUT/summary.json and the rows of its runs; returns the page's path."""
    content = read_summary(out / "summary.json")
    pairs = []
    for model in content["models"]:
        store = RunStore.read(resolve_path(out, model["path"]))
        pairs.append((store, read_run(store, content["n"])))
    page = out / "index.html"
    context = _context(content, pairs) | {"rows": [_link_to_rows(out, model) for model in content["models"]]}
    text = templates().get_template("page.html.j2").render(context, sections=_sections(context))
    with atomic(page) as temporary:
        # the command may name a folder whose bytes are not UTF-8
        temporary.write_text(text, encoding="utf-8", errors="replace")
    remove_stale(out)  # half-written pages and summaries; those of a run are removed by its store
    return page


def _sections(context: dict[str, Any]) -> dict[str, str]:
    """The sections that have content."""
    details = context["details"]
    optional = {
        "attacks": context["curves"] or details["attacks"],
        "corruptions": details["corruptions"],
        "calibration": context["reliability"],
        "foreign": context["roc"],
        "gradients": context["gradients"],
        "cost": context["cost"],
        "tests": context["tests"],
    }
    return {place: title for place, title in SECTIONS.items() if optional.get(place, True)}


class RowsLink(NamedTuple):
    """The path from the page to a model's rows, and whether it is an archive."""

    model: str
    path: str
    packed: bool


def _link_to_rows(out: Path, model: ModelEntry) -> RowsLink:
    archive = f"rows/{model['name']}.tar.xz"
    packed = (out / archive).is_file()
    return RowsLink(model["name"], archive if packed else f"{model['path']}/samples/", packed)


def templates() -> Environment:
    """The jinja2 environment of the package's templates, with autoescape."""
    environment = Environment(
        loader=PackageLoader("robustgen.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"style": style, "marker": marker}
    environment.filters["short"] = time_text
    environment.filters["link"] = lambda path: quote(os.fsencode(path))  # a path may not be UTF-8
    return environment


def _context(content: Summary, pairs: list[tuple[RunStore, Run]]) -> dict[str, Any]:
    runs = [run for _, run in pairs]
    table, groups = main_table(content), flag_groups(content)
    doubts = doubts_of(content, groups)
    galleries, no_pictures = _galleries(content, pairs)
    return _figures(content, runs) | {
        "summary": content,
        "date": datetime.fromisoformat(content["created"]).strftime("%-d %B %Y, %H:%M UTC"),
        "asked": asked(content),
        "table": table,
        "strips": glance.strips(table, doubts),
        "models_legend": glance.legend(content),
        "flags": groups,
        "doubts": doubts,
        "milliseconds": {model["name"]: costs.milliseconds(model) for model in content["models"]},
        "sentences": _sentences(content, runs, takeaways(table, doubts)),
        "galleries": galleries,
        "no_pictures": no_pictures,
        "details": _details(content),
        "tests": paired_tests(content),
        "environments": _environments(content),
        "costs": [costs.run_cost(model) for model in content["models"]],
        "citations": citations(content),
        "protocol_json": json.dumps(content["protocol"], indent=1, ensure_ascii=False),
    }


def _figures(content: Summary, runs: list[Run]) -> dict[str, Any]:
    return {
        "curves": figures.curves(content),
        "heat": corruptions.heat_map(content),
        "corruptions": corruptions.corruption_charts(content),
        "reliability": figures.reliability_diagrams(content, runs),
        "risk": figures.risk_coverage_chart(content, runs),
        "roc": figures.roc_curves(content, runs),
        "gradients": figures.gradient_charts(content) + explained_figures(content, runs),
        "cost": costs.cost_chart(content),
    }


def _sentences(content: Summary, runs: list[Run], found: list[Takeaway]) -> dict[str, list[str]]:
    """The sentences at the head of each section; those on gradients are takeaways of the main table."""
    _, points = costs.cost_points(content)
    return {
        "attacks": sentences.attacks(content) + sentences.guarded(content),
        "corruptions": sentences.corruptions(corruptions.heat_map(content)),
        "calibration": sentences.calibrated(runs),
        "foreign": sentences.foreign(content),
        "gradients": [takeaway.sentence for takeaway in found if takeaway.metric in GAINS],
        "cost": sentences.costs(points),
    }


def _galleries(content: Summary, pairs: list[tuple[RunStore, Run]]) -> tuple[list[pictures.Gallery], str]:
    """The galleries of example pictures, and the reason if there are none."""
    try:
        roots = [store.environment.get("data_root") for store, _ in pairs]
        root = next((root for root in roots if root and Path(root).is_dir()), None)
        clean = pictures.clean_pictures(content["data"], root)
    except UserError as error:
        return [], f"There are no example pictures: {error.what}."
    shown = pictures.galleries(content, pairs, clean)
    panel = explained_gallery(pairs, clean)
    shown += [panel] if panel else []
    return shown, "" if shown else "There are no example pictures: the runs stored none."


def _details(content: Summary) -> dict[str, DetailTable | None]:
    return {place: detail_table(content, title, metrics) for place, (title, metrics) in DETAILS.items()}


def _environments(content: Summary) -> list[tuple[dict[str, Any], list[str]]]:
    """Versions and machine, with the models that share them."""
    found: list[tuple[dict[str, Any], list[str]]] = []
    for model in content["models"]:
        paths = ("reference", "data_root")
        versions = {key: value for key, value in model["environment"].items() if key not in paths}
        versions |= {key: model["kernels"][key] for key in ("device", "batch", "precision", "threads")}
        known = next((names for other, names in found if other == versions), None)
        if known is None:
            found.append((versions, [model["name"]]))
        else:
            known.append(model["name"])
    return found
