"""A stored run as arrays: ``read_run`` reads a RunStore into a Run of Evaluations, each with its Rows."""

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
TABLES: dict[Kind, str] = {
    "gradients": "guidance", "probes": "probes", "efficiency": "sweep", "explained": "explained",
    "climbs": "climbs",
}  # fmt: skip
"""The name of the table that evaluations of a kind store beside their rows."""


@dataclass(frozen=True)
class Rows:
    """The rows of one evaluation of one model, in the order of their sample ids.

    ``ids``, ``labels`` int64 (n,), label -1 for foreign pictures; ``logits`` float64 (n, classes);
    ``draws``, ``draws_correct`` int (n,): the draws behind the verdict, and how many were correct;
    ``log_prob`` float64 (n,) in nats, NaN where the model has none; ``broken_by`` object (n,): the stage of
    a cascade that broke the sample, or None; ``within_budget`` object (n,): bool, None without a budget;
    ``seeded_by``, ``forwards``, ``backwards`` (n,); ``scores`` float64 (n,) by name, where every row has it.
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
        """The indices of these samples in the arrays; each must have a row."""
        return np.asarray(np.searchsorted(self.ids, ids))

    def of(self, ids: Array) -> Rows:
        """The rows of these samples, in the order of ``ids``; each must have one."""
        if np.array_equal(ids, self.ids):
            return self
        places = self.at(ids)
        arrays = {f.name: getattr(self, f.name)[places] for f in fields(self) if f.name != "scores"}
        return replace(self, **arrays, scores={name: each[places] for name, each in self.scores.items()})

    @cached_property
    def correct(self) -> Array:
        """Whether most draws of each sample were correct, bool (n,): the verdict as a yes or no."""
        return verdicts.majority(self.draws_correct, self.draws)

    @property
    def share(self) -> Array:
        """The share of draws that were correct, (n,); 0 or 1 for a deterministic model."""
        return verdicts.mean(self.draws_correct, self.draws)

    @property
    def stochastic(self) -> bool:
        """Whether a verdict rests on several draws, as those of stochastic models do."""
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
    """The rows of the samples that all of ``several`` have: one index is the same sample in each."""
    ids = reduce(np.intersect1d, [rows.ids for rows in several])
    return [rows.of(ids) for rows in several]


def log_odds(logits: Array) -> Array:
    """log p / (1 - p) of the most probable class, (n,), from logits (n, classes).

    Orders samples as the confidence p does, and also separates those whose p rounds to 1. For one class, 0.
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
    """One evaluation of a run.

    ``detail``: its entry in run.json; ``rows``: None where no chunk is finished; ``wanted``: how many rows
    were asked for.
    """

    detail: dict[str, Any]
    rows: Rows | None
    wanted: int
    smaller: dict[int, int] = field(default_factory=dict)
    """How many samples were computed at a batch size below the run's, by batch size."""
    lost: int = 0
    """How many samples have rows but have lost the table that was written beside them."""
    audited: Array = field(default_factory=lambda: np.empty(0, np.int64))
    """The ids of the samples that an attack's audit would attack again (``audit.py``)."""
    table: pd.DataFrame | None = None
    """The table beside the rows (TABLES), without its columns of pictures."""

    @property
    def name(self) -> str:
        return str(self.detail["name"])


def is_attack(detail: Mapping[str, Any], *names: str) -> bool:
    """Whether an attack's entry in run.json is one of robustgen's attacks ``names``, with any options
    (``noise``, ``apgd-t-i20``). False for a user's attack (its entry has ``code``), whatever its name."""
    name = str(detail["attack"])
    return "code" not in detail and any(name == n or name.startswith(f"{n}-") for n in names)


@dataclass(frozen=True)
class Run:
    """What metrics and flags need of one model's stored run; ``spec`` is run.json."""

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
        """(evaluation, table) of every evaluation of a kind that has a table."""
        for evaluation in self.evaluations.values():
            if evaluation.detail["kind"] == kind and evaluation.table is not None:
                yield evaluation.name, evaluation.table

    def tables_where_right(self, kind: Kind) -> Iterator[tuple[str, pd.DataFrame]]:
        """As ``tables``, restricted to samples that are classified correctly."""
        for evaluation, rows in self.of_kind(kind):
            if evaluation.table is None:
                continue
            table = evaluation.table[np.isin(evaluation.table["sample_id"], rows.ids[rows.correct])]
            if len(table):
                yield evaluation.name, table

    def first(self, kind: Kind) -> Rows | None:
        """The rows of the first evaluation of a kind that has rows, such as clean."""
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
        audited = audited_in(to_rows(whole), store.chunks(name)) if attacked else np.empty(0, np.int64)
        beside = TABLES.get(detail["kind"])
        lost = store.incomplete_samples(name, n) if beside else 0
        found = store.table(name, beside, n) if beside and rows is not None else None
        evaluations[name] = Evaluation(
            detail, rows, min(n or size, size), store.reduced_batches(name, n), lost, audited,
            None if found is None else numbers_of(found),
        )  # fmt: skip
    return Run(store.model, store.spec, evaluations, _errors(store.path / "errors.jsonl"))


def audited_in(rows: Rows, chunks: Iterable[tuple[int, int]]) -> Array:
    """The ids of the samples that were audited, given all rows of an attack and the chunks they were computed
    in: an audit chooses among the samples that no stage broke."""
    return audited_ids(rows.ids[rows.correct | (rows.broken_by == AUDIT)], chunks)


def to_rows(table: pa.Table) -> Rows:
    """A table with the columns of ``rowtable.row_schema`` as Rows."""

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
    """A table without its list columns, which hold pictures."""
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
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # a line cut off by a crash, or damaged on disk
    return found
