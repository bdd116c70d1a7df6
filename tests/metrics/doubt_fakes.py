"""Runs made of rows that a test says, for the flags."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from robustgen.metrics.rows import Array, Evaluation, Rows, Run, audited_in, to_rows
from robustgen.rowtable import row_schema


def rows(right: list[bool] | int = 8, *, logits: np.ndarray | None = None, **columns: Any) -> Rows:
    """Rows of these verdicts (a number: so many right ones), label 0 and logits [1, 0] unless said."""
    verdicts = [True] * right if isinstance(right, int) else list(right)
    n = len(verdicts)
    plain = [[1.0, 0.0]] * n if logits is None else logits.tolist()
    content = {
        "sample_id": range(n), "label": [0] * n, "logits": plain, "draws": [1] * n,
        "draws_correct": [int(v) for v in verdicts], "forwards": [1.0] * n, "backwards": [0.0] * n,
        "seeded_by": ["sample"] * n, **columns,
    }  # fmt: skip
    schema = row_schema(len(plain[0]))
    return to_rows(
        pa.table([pa.array(list(content.get(f.name, [None] * n)), f.type) for f in schema], schema=schema)
    )


def attack(name: str, eps: float = 0.1, norm: str = "linf", cascade: tuple[str, ...] = ()) -> dict[str, Any]:
    """An attack's line of run.json."""
    return {
        "name": f"{name}-{norm}-{eps:g}", "kind": "attack", "attack": name, "norm": norm, "eps": eps,
        "cascade": list(cascade),
    }  # fmt: skip


def run(
    *evaluations: tuple[dict[str, Any], Rows],
    classes: int = 2,
    model: dict[str, Any] | None = None,
    precision: str = "float32",
    chunk: int = 64,
    specs: list[dict[str, Any]] | None = None,
    table: pd.DataFrame | None = None,
) -> Run:
    """A run of these evaluations; ``model`` changes what run.json says of the model, ``table`` was written
    beside the rows of each."""
    said = {"name": "m", "num_classes": classes, "family": "softmax", "stochastic": False} | (model or {})
    spec = {
        "model": said, "kernels": {"precision": precision},
        "protocol": {"chunk": chunk, "evaluations": specs or []},
    }  # fmt: skip

    def whole(found: Rows) -> Array:
        return audited_in(found, [(start, start + chunk) for start in range(0, len(found), chunk)])

    several = {d["name"]: Evaluation(d, r, len(r), audited=whole(r), table=table) for d, r in evaluations}
    return Run("m", spec, several)
