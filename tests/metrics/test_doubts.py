"""Flags on what the rows alone do not show."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from robustgen.metrics import doubts
from robustgen.metrics.rows import Evaluation, Rows, Run, to_rows
from robustgen.store import row_schema
from robustgen.types import Flag

SIGMAS = [0.25, 0.5]


def rows(n: int = 8) -> Rows:
    import pyarrow as pa

    content = {
        "sample_id": range(n), "label": [0] * n, "logits": [[1.0, 0.0]] * n, "draws": [1] * n,
        "draws_correct": [1] * n, "forwards": [1.0] * n, "backwards": [0.0] * n, "seeded_by": ["sample"] * n,
    }  # fmt: skip
    schema = row_schema(2)
    columns = [pa.array(list(content.get(field.name, [None] * n)), field.type) for field in schema]
    return to_rows(pa.table(columns, schema=schema))


def run(family: str = "softmax", foreign: str = "letters") -> Run:
    details = [
        {"name": "clean", "kind": "clean"},
        {"name": "calibration", "kind": "calibration"},
        {"name": "foreign", "kind": "ood", "data": foreign},
        {"name": "gradients", "kind": "gradients", "sigmas": SIGMAS},
    ]
    table = pd.DataFrame({"sample_id": list(range(8)) * 2, "sigma": [0.25] * 8 + [0.5] * 8})
    evaluations = {d["name"]: Evaluation(d, rows(), 8) for d in details}
    spec = {"model": {"name": "m", "num_classes": 2, "family": family}}
    return Run("m", spec, evaluations, {"gradients": table})


def flags(found: Run) -> dict[str, Flag]:
    return {flag.flag: flag for flag in doubts.find_doubts(found)}


def test_a_whole_table_beside_the_rows_raises_no_flag() -> None:
    assert "incomplete" not in flags(run())


@pytest.mark.parametrize("kept", [0, 3, 11])
def test_a_lost_table_beside_the_rows_is_an_incomplete_evaluation(kept: int) -> None:
    whole = run()
    tables = {"gradients": whole.guidance["gradients"][:kept]} if kept else {}
    flag = flags(replace(whole, guidance=tables))["incomplete"]
    assert (flag.evaluation, flag.severity) == ("gradients", "error")
    assert flag.message.startswith(f"{max(0, kept - 8)} of 8 evaluated")


def test_of_a_custom_model_the_training_pictures_are_not_known() -> None:
    assert "unknown_training" not in flags(run())
    flag = flags(run("custom"))["unknown_training"]
    assert flag.severity == "info"
    assert "too good" in flag.message
    without = run("custom")
    del without.evaluations["calibration"]
    assert "unknown_training" not in flags(without)


def test_foreign_pictures_that_depend_on_each_other_are_named() -> None:
    assert "ten fonts" in flags(run())["dependent_samples"].message
    assert "half-overlapping" in flags(run(foreign="photos"))["dependent_samples"].message
    assert "dependent_samples" not in flags(run(foreign="mnist"))
