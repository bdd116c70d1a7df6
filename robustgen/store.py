"""The run store: one folder a model, one Parquet file a finished chunk.

    run.json                                      the specification, written first
    samples/<evaluation>/<start>-<stop>.parquet   one row a sample; its presence means the chunk is done
    tables/<evaluation>/<name>/...                readings that are not one row a sample
    adversarial/<evaluation>/...                  the perturbed pictures, float32
    errors.jsonl                                  chunks that raised; they are tried again on the next run

A chunk appears atomically: side files first, the rows file last, with their sha256 in its metadata.
There is no lock and no single writer, since two writers of one chunk write the same bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from robustgen.config import fingerprint
from robustgen.errors import DiskFullError, UserError


class Chunk(NamedTuple):
    """Samples start to stop of an evaluation: the unit of resume and shard."""

    evaluation: str
    start: int
    stop: int

    @property
    def stem(self) -> str:
        return f"{self.start:06d}-{self.stop:06d}"


def row_schema(num_classes: int) -> pa.Schema:
    """The columns of samples/: what was asked of the model at one perturbed picture, and what it said.

    Prediction, confidence and correctness are derived from ``logits`` and ``label``.
    """
    return pa.schema(
        [
            pa.field("sample_id", pa.int64(), nullable=False),
            pa.field("label", pa.int64(), nullable=False),  # -1: foreign, no label
            pa.field("logits", pa.list_(pa.float32(), num_classes), nullable=False),
            pa.field("log_prob", pa.float32()),  # nats; null where the model has no p(x)
            pa.field("distance", pa.float64()),  # in the threat model's norm; null without one
            pa.field("within_budget", pa.bool_()),  # before verify() projected; null without a budget
            pa.field("broken_by", pa.string()),  # which attack of a cascade; null where none did
            pa.field("draws", pa.int32(), nullable=False),  # forwards behind the verdict
            pa.field("draws_correct", pa.int32(), nullable=False),
            pa.field("scores", pa.map_(pa.string(), pa.float64())),
            pa.field("forwards", pa.float64(), nullable=False),  # how often the model was asked about it
            pa.field("backwards", pa.float64(), nullable=False),
            pa.field("seeded_by", pa.string(), nullable=False),  # sample, or chunk (outside attacks)
        ]
    )


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path that becomes ``path``, whole and on disk, when the block ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(where=path.parent)
    return UserError("cannot write", where=path, got=error.strerror or error)


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON; what cannot be read is a UserError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            "cannot read the file", where=path, expected="JSON written by robustgen", got=error
        ) from None


class RunStore:
    """The folder of one model's run: ``RunStore.open`` to write, ``RunStore.read`` to read."""

    def __init__(self, path: Path, spec: dict[str, Any], environment: dict[str, Any]) -> None:
        self.path = path
        self.spec = spec
        self.environment = environment

    @classmethod
    def open(cls, path: Path, spec: dict[str, Any], environment: dict[str, Any]) -> RunStore:
        """Begin a run or go on with it.

        ``spec`` is all that the report says of a run; rows depend on its ``identity``, and on each
        evaluation's own description. Rows of another identity cannot be mixed with new ones: that
        is an error that says what changed. Evaluations may come and go.
        """
        file = path / "run.json"
        if file.exists():
            old = cls.read(path).spec
            changes = list(_changes(old["identity"], spec["identity"]))
            before, now = (_by_name(s["evaluations"] + s.get("retired", [])) for s in (old, spec))
            changes += [
                c for name in before.keys() & now.keys() for c in _changes(before[name], now[name], name)
            ]
            if changes:
                raise UserError(
                    "this folder holds another run, whose rows cannot be mixed with new ones",
                    where=path,
                    expected="the same model, data and protocol",
                    got="; ".join(changes[:6]),
                    remedy=f"choose another --out, or delete {path}",
                )
            # remembered, so that their rows are not taken for those of a later namesake
            spec = spec | {"retired": [before[name] for name in sorted(before.keys() - now.keys())]}
        elif any((path / "samples").glob("*/*")):
            raise UserError(
                "this folder has rows but no run.json, so nobody knows what they are of",
                where=path,
                remedy=f"choose another --out, or delete {path}",
            )
        write_json(file, {"spec": spec, "fingerprint": fingerprint(spec), "environment": environment})
        return cls(path, spec, environment)

    @classmethod
    def read(cls, path: Path) -> RunStore:
        """An existing run; a run.json that was edited by hand is refused."""
        content = read_json(path / "run.json")
        try:
            spec, environment, stated = content["spec"], content["environment"], content["fingerprint"]
        except (KeyError, TypeError) as error:
            raise UserError("this is no run of robustgen", where=path / "run.json", got=error) from None
        if fingerprint(spec) != stated:
            raise UserError(
                "the specification is not the one that was written",
                where=path / "run.json",
                expected=f"fingerprint {stated}",
                got=fingerprint(spec),
                remedy=f"delete {path} and run again",
            )
        return cls(path, spec, environment)

    @property
    def model(self) -> str:
        return str(self.spec["model"]["name"])

    def done(self) -> set[Chunk]:
        """The finished chunks: those whose rows are there, and every side file that the rows name."""
        found = set()
        for file in (self.path / "samples").glob("*/[0-9]*-[0-9]*.parquet"):
            if all((self.path / name).is_file() for name in json.loads(_metadata(file)[b"sha256"])):
                start, stop = file.stem.split("-")
                found.add(Chunk(file.parent.name, int(start), int(stop)))
        return found

    def write(
        self,
        chunk: Chunk,
        rows: pa.Table,
        *,
        tables: Mapping[str, pa.Table] | None = None,
        adversarial: pa.Table | None = None,
        seconds: float = 0.0,
    ) -> None:
        """Write a finished chunk: side files, then its rows with their sha256."""
        side = {f"tables/{chunk.evaluation}/{name}": table for name, table in (tables or {}).items()}
        if adversarial is not None:
            side[f"adversarial/{chunk.evaluation}"] = adversarial
        hashes = {}
        for folder, table in side.items():
            file = self.path / folder / f"{chunk.stem}.parquet"
            hashes[f"{folder}/{file.name}"] = _write_parquet(file, table)
        metadata = {b"sha256": json.dumps(hashes).encode(), b"seconds": f"{seconds:.6f}".encode()}
        _write_parquet(self.path / "samples" / chunk.evaluation / f"{chunk.stem}.parquet", rows, metadata)

    def rows(self, evaluation: str, n: int | None = None) -> pa.Table | None:
        """The rows of an evaluation in the order of their samples, the first ``n`` samples only."""
        return self._read("samples", evaluation, n)

    def table(self, evaluation: str, name: str, n: int | None = None) -> pa.Table | None:
        """A table beside the rows, such as ("gradients", "guidance")."""
        return self._read("tables", f"{evaluation}/{name}", n)

    def adversarial(self, evaluation: str, n: int | None = None) -> pa.Table | None:
        """The perturbed pictures: sample_id, image (flattened channels x height x width)."""
        return self._read("adversarial", evaluation, n)

    def seconds(self, evaluation: str) -> float:
        """Wall time of an evaluation's chunks, added up."""
        files = (self.path / "samples" / evaluation).glob("*.parquet")
        return sum(float(_metadata(file)[b"seconds"]) for file in files)

    def check(self, evaluations: Iterable[str]) -> None:
        """Read every row of these evaluations once: a damaged file is a UserError, here and not later."""
        for name in evaluations:
            self.rows(name)
            for table in (self.path / "tables" / name).glob("*"):
                self.table(name, table.name)

    def damaged(self, chunk: Chunk) -> list[str]:
        """Side files of a chunk that are absent or not what was written, by their sha256."""
        file = self.path / "samples" / chunk.evaluation / f"{chunk.stem}.parquet"
        hashes = json.loads(_metadata(file)[b"sha256"])
        return [name for name, sha256 in hashes.items() if _sha256(self.path / name) != sha256]

    def fail(self, chunk: Chunk, message: str) -> None:
        """Note a chunk that raised."""
        line = json.dumps({"chunk": chunk._asdict(), "time": time.time(), "error": message})
        try:
            with (self.path / "errors.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise _cannot_write(self.path / "errors.jsonl", error) from None

    def _read(self, kind: str, name: str, n: int | None) -> pa.Table | None:
        covered: set[int] = set()
        tables = []
        for file in sorted((self.path / kind / name).glob("[0-9]*-[0-9]*.parquet")):
            table = read_parquet(file)
            ids = np.asarray(table["sample_id"])
            # Two writers of different chunk borders leave the same samples twice, with the same rows.
            keep = [i not in covered and (n is None or i < n) for i in ids.tolist()]
            covered |= set(ids.tolist())
            tables.append(table.replace_schema_metadata(None).filter(pa.array(keep, pa.bool_())))
        if not tables:
            return None
        table = pa.concat_tables(tables)
        return table.take(pa.array(np.argsort(np.asarray(table["sample_id"]), kind="stable")))


def read_parquet(file: Path) -> pa.Table:
    """Read one file with its page checksums verified; a damaged one is a UserError."""
    try:
        return pq.ParquetFile(file, page_checksum_verification=True).read()
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, str(error).splitlines()[0]) from None


def _metadata(file: Path) -> dict[bytes, bytes]:
    """What a rows file says of its chunk: sha256 of the side files, seconds."""
    try:
        metadata = pq.read_metadata(file).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, str(error).splitlines()[0]) from None
    if not {b"sha256", b"seconds"} <= metadata.keys():
        raise _damaged(file, "its metadata is gone")
    return metadata


def _damaged(file: Path, why: str) -> UserError:
    return UserError(
        "a stored chunk is damaged",
        where=file,
        got=why,
        remedy="delete this file and run the same command again: only this chunk is computed anew",
    )


def _write_parquet(file: Path, table: pa.Table, metadata: dict[bytes, bytes] | None = None) -> str:
    table = table.replace_schema_metadata(metadata)
    with atomic(file) as temporary:
        try:
            pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
        except pa.ArrowException as error:
            raise OSError(errno.EIO, str(error)) from None
    return _sha256(file)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "absent"


def _by_name(evaluations: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {evaluation["name"]: evaluation for evaluation in evaluations}


def _changes(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """Every leaf in which two specifications differ, as 'key: old -> new'."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _changes(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield f"{key}: {json.dumps(old)[:80]} -> {json.dumps(new)[:80]}"
