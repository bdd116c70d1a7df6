"""From a protocol and a data set to evaluations: what is measured, and what was refused and why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robustgen.config import EvaluationSpec, Protocol
from robustgen.data import Dataset
from robustgen.errors import UserError
from robustgen.evaluation import Plan
from robustgen.plan import attacked, gradients, pictures
from robustgen.plan.planning import Planning


def plan(protocol: Protocol, dataset: Dataset, root: Path | None = None) -> Plan:
    """Turn a protocol's specifications into evaluations of a data set's test split."""
    planning = Planning(protocol.settings(dataset.name), dataset, root)
    pictures.choose_scores(planning, protocol)
    # ``fixed`` comes last: it attacks the foreign sets that ``ood`` has planned
    for spec in sorted(protocol.evaluations, key=lambda spec: spec.kind == "fixed"):
        with _told_where(protocol, spec.kind):
            _plan_one(planning, spec)
    names = [evaluation.name for evaluation in planning.evaluations]
    if len(set(names)) < len(names):
        double = sorted({name for name in names if names.count(name) > 1})
        raise UserError(
            f"protocol {protocol.name!r} has an evaluation twice", where="its evaluations",
            expected="each name once", got=", ".join(double), remedy="leave one of them out",
        )  # fmt: skip
    return Plan(planning.evaluations, planning.refused)


@contextmanager
def _told_where(protocol: Protocol, kind: str) -> Iterator[None]:
    """What is wrong with an evaluation is said with its place in the protocol."""
    try:
        yield
    except UserError as error:
        where = f"the evaluation {kind!r} of the protocol {protocol.name!r}"
        error.fill_in(where=where, remedy="mend the protocol")
        raise


def _plan_one(planning: Planning, spec: EvaluationSpec) -> None:
    match spec.kind:
        case "clean":
            pictures.clean(planning)
        case "corruptions":
            pictures.corruptions(planning, spec)
        case "ood":
            pictures.foreign(planning)
        case "attack":
            attacked.attack(planning, spec)
        case "transfer":
            attacked.transfer(planning, spec)
        case "fixed":
            attacked.fixed(planning, spec)
        case "detected":
            attacked.detected(planning, spec)
        case "gradients":
            gradients.guidance(planning, spec)
        case "efficiency":
            gradients.efficiency(planning)
        case "explained":
            gradients.explained(planning, spec)
        case "probes":
            gradients.probes(planning)
        case "climbs":
            gradients.climbs(planning, spec)
