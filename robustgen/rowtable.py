"""The schema of rows, and checks of tables read from disk: a report may come from anybody."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

SIDE = re.compile(r"(tables|adversarial)(/[a-z0-9_][A-Za-z0-9._-]*)+\.parquet")
"""Paths of side files, relative to the run's folder and never out of it."""


def row_schema(num_classes: int) -> pa.Schema:
    """The columns of samples/: one row a perturbed picture, with the model's answers.

    Prediction, confidence and correctness are derived from ``logits`` and ``label``.
    """
    return pa.schema(
        [
            pa.field("sample_id", pa.int64(), nullable=False),
            pa.field("label", pa.int64(), nullable=False),  # -1: foreign, no label
            pa.field("logits", pa.list_(pa.float32(), num_classes), nullable=False),
            pa.field("log_prob", pa.float32()),  # nats; null where the model has no p(x)
            pa.field("distance", pa.float64()),  # in the threat model's norm; null without one
            pa.field("within_budget", pa.bool_()),  # as the attack made it; null without a budget
            pa.field("broken_by", pa.string()),  # the attack of a cascade that broke it; null if none did
            pa.field("draws", pa.int32(), nullable=False),  # forward passes behind the verdict
            pa.field("draws_correct", pa.int32(), nullable=False),
            pa.field("scores", pa.map_(pa.string(), pa.float64())),
            pa.field("forwards", pa.float64(), nullable=False),  # calls of the model for this sample
            pa.field("backwards", pa.float64(), nullable=False),
            pa.field("seeded_by", pa.string(), nullable=False),  # sample, or chunk (outside attacks)
        ]
    )


def metadata_problem(metadata: Mapping[bytes, bytes] | None) -> str:
    """What is wrong with the metadata of a rows file; "" if nothing is."""
    if not {b"sha256", b"seconds"} <= (metadata or {}).keys():
        return "its metadata is gone"
    assert metadata is not None
    try:
        sides = json.loads(metadata[b"sha256"])
        seconds, batch = float(metadata[b"seconds"]), int(metadata.get(b"batch", b"1"))
    except (ValueError, RecursionError):
        return "its metadata cannot be read"
    if not isinstance(sides, dict) or not all(map(SIDE.fullmatch, sides)):
        return "its metadata names files that are none of a run"
    return "" if math.isfinite(seconds) and batch > 0 else "its metadata cannot be read"


def rows_problem(table: pa.Table, start: int, stop: int) -> str:
    """What is wrong with the rows of samples start to stop; "" if nothing is.

    This refuses, before any metric is computed, values that only a broken file can have: NaN in logits, more
    correct draws than draws, a sample twice or of another chunk.
    """
    logits = table.schema.field("logits").type if "logits" in table.column_names else None
    if logits is None or not pa.types.is_fixed_size_list(logits) or logits.list_size < 1:
        return "its columns are not those of rows"
    schema = row_schema(logits.list_size)
    if table.schema.names != schema.names or table.schema.types != schema.types:
        return "its columns are not those of rows"
    for field in schema:
        if not field.nullable and table[field.name].null_count:
            return f"a value of {field.name} is absent"
    ids, labels, draws, right = (
        np.asarray(table[name]) for name in ("sample_id", "label", "draws", "draws_correct")
    )
    answers = np.concatenate([np.asarray(part.flatten()) for part in table["logits"].chunks] or [ids])
    calls = np.concatenate([np.asarray(table["forwards"]), np.asarray(table["backwards"])])
    wrong = {
        "samples of another chunk": (ids < start) | (ids >= stop),
        "a sample twice": [len(np.unique(ids)) < len(ids)],
        "labels that are none": labels < -1,
        "logits that are no numbers": ~np.isfinite(answers),
        "verdicts that cannot be": (draws < 1) | (right < 0) | (right > draws),
        "calls that cannot be counted": ~(np.isfinite(calls) & (calls >= 0)),
    }
    return next((f"it holds {what}" for what, where in wrong.items() if np.any(where)), "")


def side_table_problem(table: pa.Table, shape: Sequence[int] | None) -> str:
    """What is wrong with a table beside the rows; "" if nothing is.

    ``shape``: of the pictures that it must hold, None if it holds none.
    """
    kinds = dict(zip(table.column_names, table.schema.types, strict=True))
    if not pa.types.is_integer(kinds.get("sample_id", pa.null())) or table["sample_id"].null_count:
        return "it does not say of which samples it is"
    if shape is None:
        return ""
    sound = kinds.get("image") == pa.list_(pa.float32(), math.prod(shape)) and not table["image"].null_count
    return "" if sound else f"it holds no pictures of shape {tuple(shape)}"
