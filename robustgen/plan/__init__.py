"""Turns a protocol and a data set into a plan: the evaluations, and what was refused and why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robustgen.config import EvaluationSpec, Protocol
from robustgen.data import Dataset
from robustgen.errors import UserError
from robustgen.evaluation import Plan
from robustgen.plan import attacked, gradients, pictures
from robustgen.plan.builder import PlanBuilder


def plan(protocol: Protocol, dataset: Dataset, root: Path | None = None) -> Plan:
    """Plan a protocol on a data set's test split. Raises UserError for a mistake in the protocol."""
    builder = PlanBuilder(protocol.settings(dataset.name), dataset, root)
    pictures.choose_scores(builder, protocol)
    # ``fixed`` comes last: it attacks the foreign sets that ``ood`` has planned
    for spec in sorted(protocol.evaluations, key=lambda spec: spec.kind == "fixed"):
        with _located(protocol, spec.kind):
            _add_evaluations(builder, spec)
    names = [evaluation.name for evaluation in builder.evaluations]
    if len(set(names)) < len(names):
        duplicates = sorted({name for name in names if names.count(name) > 1})
        raise UserError(
            f"protocol {protocol.name!r} has an evaluation twice", where="its evaluations",
            expected="each name once", got=", ".join(duplicates), remedy="leave one of them out",
        )  # fmt: skip
    return Plan(builder.evaluations, builder.refused)


@contextmanager
def _located(protocol: Protocol, kind: str) -> Iterator[None]:
    """Add the evaluation's place in the protocol to a UserError."""
    try:
        yield
    except UserError as error:
        where = f"the evaluation {kind!r} of the protocol {protocol.name!r}"
        error.fill_in(where=where, remedy="correct the protocol")
        raise


def _add_evaluations(builder: PlanBuilder, spec: EvaluationSpec) -> None:
    match spec.kind:
        case "clean":
            pictures.add_clean(builder)
        case "corruptions":
            pictures.add_corruptions(builder, spec)
        case "ood":
            pictures.add_foreign(builder)
        case "attack":
            attacked.add_attack(builder, spec)
        case "transfer":
            attacked.add_transfer(builder, spec)
        case "fixed":
            attacked.add_fixed(builder, spec)
        case "detected":
            attacked.add_detected(builder, spec)
        case "gradients":
            gradients.add_guidance(builder, spec)
        case "efficiency":
            gradients.add_efficiency(builder)
        case "explained":
            gradients.add_explained(builder, spec)
        case "probes":
            gradients.add_probes(builder)
        case "climbs":
            gradients.add_climbs(builder, spec)
