"""A report's robust accuracies as RobustBench's model_info JSON, which its leaderboard is built from.

As in RobustBench, accuracies are text in percent, and eps is text. The fields of a paper (authors, venue,
link) are left for its author to fill in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robustgen.disk import write_json
from robustgen.errors import UserError
from robustgen.registry import slug
from robustgen.report.content import MetricEntry, ModelEntry, Summary
from robustgen.report.flags import evaluations_of
from robustgen.report.formats import eps_text
from robustgen.report.summary import read_summary
from robustgen.threat import worst_name
from robustgen.types import Norm

THREATS: dict[Norm, str] = {"linf": "Linf", "l2": "L2"}
"""The threat models that RobustBench lists, by norm."""
AUTOATTACK, THOROUGH = "autoattack", "autoattack-thorough"
CORRUPTIONS, SEVERITIES = 15, 5
USUAL_EPS = {"Linf": "8/255", "L2": "0.5"}
"""The eps of RobustBench's threat models; entries at another eps have it in their file's name."""


def export(folder: Path) -> list[Path]:
    """Write FOLDER/robustbench/<data>/<threat>/<model>.json for every model of the report in ``folder``.

    One for each threat model with AutoAttack (standard; the thorough run's accuracy if there are both), and
    one for corruptions if all 15 types and 5 severities were run. ``external`` is the worst case over all
    attacks of the threat model, where it is lower. Returns the paths; UserError where there are none.
    """
    content = read_summary(folder / "summary.json")
    written: list[Path] = []
    for model in content["models"]:
        for threat, entry in _entries(content, model):
            usual = entry["eps"] in (None, USUAL_EPS.get(threat))
            name = model["name"] if usual else f"{model['name']}-{entry['eps'].replace('/', '-')}"
            path = folder / "robustbench" / slug(content["data"]["name"]) / threat / f"{slug(name)}.json"
            write_json(path, entry)
            written.append(path)
    if not written:
        raise UserError(
            "this report has nothing that RobustBench lists", where=folder,
            expected="AutoAttack (standard) in linf or l2, or the protocol 'corruptions'",
            remedy="run such a protocol first, for example linf-8-255",
        )  # fmt: skip
    return written


def _entries(content: Summary, model: ModelEntry) -> list[tuple[str, dict[str, Any]]]:
    numbers = {
        (m["evaluation"], m["variant"], m["metric"]): m
        for m in content["metrics"]
        if m["model"] == model["name"]
    }
    clean = numbers.get(("clean", "", "accuracy"))
    if clean is None:
        return []
    found = {}
    for detail in sorted(model["evaluations"], key=lambda d: d.get("attack") == THOROUGH):
        if detail["kind"] != "attack" or detail["norm"] not in THREATS:
            continue
        robust = numbers.get((detail["name"], "", "robust_accuracy"))
        if detail["attack"] not in (AUTOATTACK, THOROUGH) or robust is None:
            continue
        name = worst_name(detail["norm"], detail["eps"])
        worst = numbers.get((name, "", "robust_accuracy"))
        lower = worst if worst is not None and worst["value"] < robust["value"] else None
        found[name] = (
            THREATS[detail["norm"]],
            _common(content, model, clean)
            | {
                "eps": eps_text(detail["norm"], detail["eps"]),
                "autoattack_acc": _percent(robust),
                "external": _percent(lower) if lower else "",
                "unreliable": _doubted(content, model["name"], detail["name"]),
            },
        )
    cells = {(d["type"], d["severity"]) for d in model["evaluations"] if d["kind"] == "corruption"}
    corrupted = numbers.get(("corruptions", "all", "corruption_accuracy"))
    if corrupted is not None and len(cells) == CORRUPTIONS * SEVERITIES:
        entry = _common(content, model, clean) | {"eps": None, "corruptions_acc": _percent(corrupted)}
        found["corruptions"] = ("corruptions", entry)
    return list(found.values())


def _common(content: Summary, model: ModelEntry, clean: MetricEntry) -> dict[str, Any]:
    n, size = clean["n"], content["data"]["size"]
    return {
        "link": "",
        "name": model["name"],
        "authors": "",
        # the zoo's models are trained on the data set alone; of other models it is unknown
        "additional_data": None if model["family"] == "custom" else False,
        "number_forward_passes": model.get("calls", 1),
        "dataset": content["data"]["name"],
        "venue": "Unpublished",
        "architecture": f"{model['family']}, {model['parameters'] / 1e6:.2f} M parameters",
        "clean_acc": _percent(clean),
        "reported": "",
        "footnote": f"robustgen {content['robustgen']}, protocol {content['protocol']['name']} "
        f"v{content['protocol']['version']}, {n} of {size} test pictures. {content['data']['provenance']}",
    }


def _percent(metric: MetricEntry) -> str:
    return f"{100 * metric['value']:.2f}"


def _doubted(content: Summary, model: str, evaluation: str) -> bool:
    """Whether an error or a warning of the report is about this attack on this model."""
    return any(
        flag["model"] == model and flag["severity"] != "info" and evaluation in evaluations_of(content, flag)
        for flag in content["flags"]
    )
