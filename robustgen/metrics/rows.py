"""Stored rows as arrays."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import logsumexp

from robustgen.audit import AUDIT, audited_ids
from robustgen.metrics import verdicts
from robustgen.store import RunStore
from robustgen.types import Kind

Array = np.ndarray
NOBODY = np.empty(0, np.int64)
TABLES: dict[Kind, str] = {
    "gradients": "guidance", "probes": "probes", "efficiency": "sweep", "explained": "explained",
    "climbs": "climbs",
}  # fmt: skip
"""The table beside the rows of an evaluation, by its kind."""


@dataclass(frozen=True)
class Rows:
    """The rows of one evaluation of one model, in the order of their sample ids.

    ``ids``, ``labels`` int64 (n,), label -1 where a picture has none; ``logits`` float64 (n, classes);
    ``draws``, ``draws_correct`` int (n,), how many draws are behind the verdict and how many of them
    were right; ``log_prob`` float64 (n,) in nats, NaN where the model has none; ``broken_by`` object
    (n,), the stage of a cascade that broke the sample or None; ``within_budget`` object (n,), None
    without a budget; ``seeded_by``, ``forwards``, ``backwards`` (n,); ``scores`` float64 (n,) by name,
    those that every row has.
    """

    ids: Array
    labels: Array
    logits: Array
    draws: Array
    draws_correct: Array
    log_prob: Array
    broken_by: Array
    within_budget: Array
    seeded_by: Array
    forwards: Array
    backwards: Array
    scores: dict[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, ids: Array | int) -> Array:
        """The places of these samples, each of which has a row."""
        return np.asarray(np.searchsorted(self.ids, ids))

    def of(self, ids: Array) -> Rows:
        """The rows of these samples alone, each of which has one, in the order of ``ids``."""
        if np.array_equal(ids, self.ids):
            return self
        places = self.at(ids)
        arrays = {f.name: getattr(self, f.name)[places] for f in fields(self) if f.name != "scores"}
        return replace(self, **arrays, scores={name: each[places] for name, each in self.scores.items()})

    @cached_property
    def correct(self) -> Array:
        """The verdict where one is wanted, bool (n,): most of the draws were right."""
        return verdicts.majority(self.draws_correct, self.draws)

    @property
    def share(self) -> Array:
        """The share of the draws that were right, (n,); of a deterministic model 0 or 1."""
        return verdicts.mean(self.draws_correct, self.draws)

    @property
    def stochastic(self) -> bool:
        """Whether verdicts were drawn, since the model's answers are random."""
        return bool((self.draws > 1).any())

    @cached_property
    def log_probabilities(self) -> Array:
        """log softmax of the logits, (n, classes)."""
        return log_softmax(self.logits)

    @property
    def prediction(self) -> Array:
        """The class of the largest logit, (n,)."""
        return self.logits.argmax(1)


def aligned(*several: Rows) -> list[Rows]:
    """The rows of the samples that all have, so that places are of the same samples."""
    ids = reduce(np.intersect1d, [rows.ids for rows in several])
    return [rows.of(ids) for rows in several]


def log_odds(logits: Array) -> Array:
    """log p / (1 - p) of the most probable class, (n,), from logits (n, classes).

    It orders samples as the confidence p does, and also those whose p rounds to 1. Of one class, 0.
    """
    if logits.shape[1] < 2:
        return np.zeros(len(logits))
    ordered = np.sort(logits, 1)
    return np.asarray(-logsumexp(ordered[:, :-1] - ordered[:, -1:], axis=1))


def log_softmax(logits: Array) -> Array:
    """log p(class) from logits (n, classes), without overflow."""
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run: its line of run.json, its rows, and how many of them were asked for."""

    detail: dict[str, Any]
    rows: Rows | None
    wanted: int
    smaller: dict[int, int] = field(default_factory=dict)
    """How many samples were computed at a smaller batch than the run's, by that batch."""
    lost: int = 0
    """How many samples have rows, and a table no more that was written beside them."""
    audited: Array = field(default_factory=lambda: NOBODY)
    """The ids of the samples that an attack's audit was for, if it made one."""
    table: pd.DataFrame | None = None
    """What was written beside the rows (TABLES), without its pictures."""

    @property
    def name(self) -> str:
        return str(self.detail["name"])


def is_of(detail: Mapping[str, Any], *attacks: str) -> bool:
    """Whether an attack's line of run.json is of one of these attacks of robustgen's, whatever its options
    (``noise``, ``apgd-t-i20``). An own attack, whose line has its file's digest, is of none: its name is as
    its author likes."""
    name = str(detail["attack"])
    return "code" not in detail and any(name == a or name.startswith(f"{a}-") for a in attacks)


@dataclass(frozen=True)
class Run:
    """All that is stored of one model's run and that metrics need."""

    model: str
    spec: dict[str, Any]
    evaluations: dict[str, Evaluation]
    errors: list[dict[str, Any]] = field(default_factory=list)
    """The lines of errors.jsonl."""

    def of_kind(self, *kinds: Kind) -> Iterator[tuple[Evaluation, Rows]]:
        """The evaluations of these kinds that have rows."""
        for evaluation in self.evaluations.values():
            if evaluation.detail["kind"] in kinds and evaluation.rows is not None:
                yield evaluation, evaluation.rows

    def tables(self, kind: Kind) -> Iterator[tuple[str, pd.DataFrame]]:
        """The tables of the evaluations of a kind that has them, by the evaluation's name."""
        for evaluation in self.evaluations.values():
            if evaluation.detail["kind"] == kind and evaluation.table is not None:
                yield evaluation.name, evaluation.table

    def tables_where_right(self, kind: Kind) -> Iterator[tuple[str, pd.DataFrame]]:
        """These tables without the samples whose verdict is wrong, which an attack has not to move."""
        for evaluation, rows in self.of_kind(kind):
            if evaluation.table is None:
                continue
            table = evaluation.table[np.isin(evaluation.table["sample_id"], rows.ids[rows.correct])]
            if len(table):
                yield evaluation.name, table

    def first(self, kind: Kind) -> Rows | None:
        """The rows of the first evaluation of a kind, such as clean."""
        return next((rows for _, rows in self.of_kind(kind)), None)


def read_run(store: RunStore, n: int | None = None) -> Run:
    """Read the first ``n`` samples of every evaluation of a run."""
    evaluations = {}
    for detail in store.spec["evaluations"]:
        name, size = detail["name"], int(detail["size"])
        whole = store.rows(name)
        table = whole if whole is None or n is None else whole.filter(pc.less(whole["sample_id"], n))
        rows = to_rows(table) if table is not None and len(table) else None
        attacked = whole is not None and detail["kind"] == "attack"
        audited = audited_in(to_rows(whole), store.chunks(name)) if attacked else NOBODY
        beside = TABLES.get(detail["kind"])
        lost = store.incomplete_samples(name, n) if beside else 0
        found = store.table(name, beside, n) if beside and rows is not None else None
        evaluations[name] = Evaluation(
            detail, rows, min(n or size, size), store.reduced_batches(name, n), lost, audited,
            None if found is None else numbers_of(found),
        )  # fmt: skip
    return Run(store.model, store.spec, evaluations, _errors(store.path / "errors.jsonl"))


def audited_in(rows: Rows, chunks: Iterable[tuple[int, int]]) -> Array:
    """The ids of the samples that an audit was for, of all rows of an evaluation in the chunks that they were
    computed in: those that stand, or that the audit alone broke, go through it."""
    return audited_ids(rows.ids[rows.correct | (rows.broken_by == AUDIT)], chunks)


def to_rows(table: pa.Table) -> Rows:
    """A table of ``rowtable.row_schema`` as arrays."""

    def column(name: str) -> Array:
        return np.asarray(table[name].to_numpy())

    flat = table["logits"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return Rows(
        ids=column("sample_id"),
        labels=column("label"),
        logits=flat.reshape(len(table), -1).astype(np.float64),
        draws=column("draws"),
        draws_correct=column("draws_correct"),
        log_prob=column("log_prob").astype(np.float64),
        broken_by=column("broken_by").astype(object),
        within_budget=column("within_budget").astype(object),
        seeded_by=column("seeded_by"),
        forwards=column("forwards"),
        backwards=column("backwards"),
        scores=_scores(table),
    )


def _scores(table: pa.Table) -> dict[str, Array]:
    rows = [dict(pairs or ()) for pairs in table["scores"].to_pylist()]
    names = [name for name in (rows[0] if rows else ()) if all(name in row for row in rows)]
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in names}


def numbers_of(table: pa.Table) -> pd.DataFrame:
    """A table without its list columns (the stored pictures of guidance)."""
    plain = [name for name in table.column_names if not pa.types.is_list(table.schema.field(name).type)]
    return table.select(plain).to_pandas()


def _errors(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    found = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            content = json.loads(line)
            where = {"evaluation": "", **content.get("chunk", {})}
            found.append({**content, "chunk": where, "error": str(content["error"])})
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
        ):  # a line that a crash cut off, or a disk changed
            continue
    return found
