"""What a disturbed report has and says, held against a run that was left in peace."""

from __future__ import annotations

import json
import os
import time
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from benchmarks.injection import Life
from robustgen.errors import UserError
from robustgen.parquet import read_metadata, read_rows
from robustgen.store import Chunk, RunStore

TOLERANCE = 1e-4
"""Of clean logits at another batch size (docs/faults.md)."""


class Findings(NamedTuple):
    """What was lost and what is wrong, in words."""

    lost: list[str]
    wrong: list[str]


class Audit:
    """Judges reports by one that ran in peace."""

    def __init__(self, peaceful: Path) -> None:
        (run,) = (peaceful / "runs").iterdir()
        self.store = RunStore.read(run)
        self.summary = json.loads((peaceful / "summary.json").read_text())
        self.evaluations = {e["name"]: e for e in self.store.spec["evaluations"]}
        self.tables = {e: self._stored(self.store, e) for e in self.evaluations}
        self.expected = sorted(
            Chunk(e, *bounds) for e in self.evaluations for bounds in self.store.finished(e).tolist()
        )
        self.chunks = len(self.expected)

    @cached_property
    def wanted(self) -> dict[str, int]:
        """How many samples an evaluation has in the end."""
        return {name: len(tables["rows"] or []) for name, tables in self.tables.items()}

    @staticmethod
    def _stored(store: RunStore, evaluation: str) -> dict[str, pa.Table | None]:
        return {
            "rows": store.rows(evaluation),
            "adversarial": store.adversarial(evaluation),
            "guidance": store.table(evaluation, "guidance"),
        }

    def _of(self, out: Path) -> RunStore:
        """The store of a disturbed report, whatever became of its run.json: its run is the peaceful one's."""
        path = out / "runs" / self.store.path.name
        return RunStore(path, self.store.spec, self.store.environment)

    def files(self, out: Path) -> list[Path]:
        """The rows files of a report."""
        return sorted(self._of(out).path.glob("samples/*/[0-9]*.parquet"))

    def sound(self, out: Path) -> list[Chunk]:
        """The finished chunks whose every file is what was written."""
        store, found = self._of(out), []
        for file in self.files(out):
            start, stop = file.stem.split("-")
            chunk = Chunk(file.parent.name, int(start), int(stop))
            try:
                ours = store._is_ours(chunk.evaluation, read_rows(file).schema.metadata)
                if ours and not store.damaged_files(chunk):
                    found.append(chunk)
            except UserError:
                continue
        return found

    def complete(self, out: Path) -> bool:
        """Whether everything is there."""
        return self.sound(out) == self.expected

    def judge(self, out: Path, life: Life, before: list[Chunk]) -> Findings:
        """Whether what was finished still is, whether rows are right, and whether the report is honest."""
        now = self.sound(out)
        lost = [f"{chunk} was finished and is not any more" for chunk in before if chunk not in now]
        wrong = [line for chunk in now for line in self._differences(out, chunk)]
        return Findings(lost, wrong + self._honesty(out, life, now))

    def _differences(self, out: Path, chunk: Chunk) -> list[str]:
        """Where a sound chunk is not the peaceful run's: bit for bit or, at a smaller batch, to rounding."""
        store, found = self._of(out), []
        file = store.path / "samples" / chunk.evaluation / f"{chunk.stem}.parquet"
        smaller = b"batch" in read_metadata(file)
        ours = self._stored(_Only(store, chunk.stem), chunk.evaluation)
        for kind, table in self.tables[chunk.evaluation].items():
            mine = ours[kind]
            if table is None or mine is None:
                found += [] if table is mine else [f"{chunk}: {kind} there, or not there, as in peace"]
                continue
            ids = np.asarray(table["sample_id"])
            theirs = table.filter(pa.array((ids >= chunk.start) & (ids < chunk.stop)))
            if not smaller and not mine.equals(theirs):
                found.append(f"{chunk}: other {kind}")
            elif smaller and kind == "rows" and not self._close(chunk, mine, theirs):
                found.append(f"{chunk}: other {kind}, beyond what a smaller batch explains")
        return found

    def _close(self, chunk: Chunk, mine: pa.Table, theirs: pa.Table) -> bool:
        """The tolerance across batch sizes: logits to rounding; under attack, one other verdict at most."""
        one, other = (np.array(table["logits"].to_pylist()) for table in (mine, theirs))
        verdicts = [np.asarray(table["draws_correct"]) for table in (mine, theirs)]
        if self.evaluations[chunk.evaluation]["kind"] == "attack":
            return int((verdicts[0] != verdicts[1]).sum()) <= 1
        return bool(np.abs(one - other).max() <= TOLERANCE) and bool((verdicts[0] == verdicts[1]).all())

    def _honesty(self, out: Path, life: Life, now: list[Chunk]) -> list[str]:
        """Whether exit code, messages and summary.json say what is there."""
        if life.code == -9 and life.fired:
            return []
        if life.code not in (0, 1, 2) or "Traceback" in life.said:
            return [f"ended with {life.code}: {life.said[-800:]}"]
        missing = [chunk for chunk in self.expected if chunk not in now]
        if life.code == 2:
            return [] if "robustgen: " in life.said else [f"exit code 2 without a word: {life.said[-300:]}"]
        summary = out / "summary.json"
        if os.stat(summary).st_mtime < life.began - 1 or time.time() < life.began:
            return ["an old summary.json, and exit code 0 or 1"]
        content = json.loads(summary.read_text())
        found = [] if bool(missing) == bool(life.code) else [f"exit code {life.code}, {len(missing)} missing"]
        found += self._flags(content, now)
        if not missing and not any(f["flag"] == "smaller_batch" for f in content["flags"]):
            found += [] if content["metrics"] == self.summary["metrics"] else ["complete, with other numbers"]
        return found

    def _flags(self, content: dict[str, Any], now: list[Chunk]) -> list[str]:
        """Whether each evaluation that lacks samples is said to, with the right number, and no other."""
        said = {(f["evaluation"], f["flag"]): f["message"] for f in content["flags"]}
        if ("", "not_evaluated") in said:
            return [] if not content["metrics"] else ["not evaluated, and yet with numbers"]
        found = []
        for name, wanted in self.wanted.items():
            have = sum(chunk.stop - chunk.start for chunk in now if chunk.evaluation == name)
            message = said.get((name, "incomplete"), "")
            if have < wanted and f"{have} of " not in message:
                found.append(
                    f"{name}: {have} of {wanted} samples are there, and the report says: {message!r}"
                )
            if have == wanted and message:
                found.append(f"{name} is complete, and the report says: {message}")
        return found


class _Only(RunStore):
    """A store of which one chunk of each evaluation is read."""

    def __init__(self, store: RunStore, stem: str) -> None:
        super().__init__(store.path, store.spec, store.environment)
        self.stem = stem

    def _chunks(self, evaluation: str = "*"):  # type: ignore[no-untyped-def]
        return (pair for pair in super()._chunks(evaluation) if pair[1].stem == self.stem)
