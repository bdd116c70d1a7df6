"""A report's robust accuracies as RobustBench's model_info JSON, which its leaderboard is built from.

RobustBench writes shares as text in percent, and eps as text; so does this. What it wants to know of a
paper (authors, venue, link) is not in a report and is left for the author to fill in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robustgen.disk import write_json
from robustgen.errors import UserError
from robustgen.registry import slug
from robustgen.report.content import MetricLine
from robustgen.report.flags import evaluations_of
from robustgen.report.formats import eps_text
from robustgen.report.summary import read_summary
from robustgen.threat import worst_name

THREATS = {"linf": "Linf", "l2": "L2"}
AUTOATTACK, THOROUGH = "autoattack", "autoattack-thorough"
CORRUPTIONS, SEVERITIES = 15, 5
USUAL = {"Linf": "8/255", "L2": "0.5"}


def export(folder: Path) -> list[Path]:
    """Write FOLDER/robustbench/<data>/<threat>/<model>.json for every model of the report in ``folder``.

    One for each threat with a whole AutoAttack (standard; the thorough run's figure, where there are both),
    and one for corruptions where the mean is over the 15 types and 5 severities. ``external`` is the worst
    case over all attacks of that threat, where it is lower. Returns the paths; UserError where there is
    nothing to export.
    """
    content = read_summary(folder / "summary.json")
    written: list[Path] = []
    for model in content["models"]:
        for threat, entry in _entries(content, model):
            # the field's own eps goes by the model's name alone; others say theirs
            own = entry["eps"] in (None, USUAL.get(threat))
            name = model["name"] if own else f"{model['name']}-{entry['eps'].replace('/', '-')}"
            path = folder / "robustbench" / slug(content["data"]["name"]) / threat / f"{slug(name)}.json"
            write_json(path, entry)
            written.append(path)
    if not written:
        raise UserError(
            "there is nothing in this report that RobustBench lists", where=folder,
            expected="AutoAttack (standard) in linf or l2, or the protocol 'corruptions'",
            remedy="run such a protocol, as linf-8-255, first",
        )  # fmt: skip
    return written


def _entries(content: dict[str, Any], model: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
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


def _common(content: dict[str, Any], model: dict[str, Any], clean: MetricLine) -> dict[str, Any]:
    n, size = clean["n"], content["data"]["size"]
    return {
        "link": "",
        "name": model["name"],
        "authors": "",
        # the zoo's models saw no other data; of a model from elsewhere nobody told us
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


def _percent(metric: MetricLine) -> str:
    return f"{100 * metric['value']:.2f}"


def _doubted(content: dict[str, Any], model: str, evaluation: str) -> bool:
    """Whether the report itself doubts an attack on a model."""
    return any(
        flag["model"] == model and flag["severity"] != "info" and evaluation in evaluations_of(content, flag)
        for flag in content["flags"]
    )
