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
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from robustgen.config import fingerprint
from robustgen.errors import UserError


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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    try:
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
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                "the disk is full",
                where=path.parent,
                got=error.strerror,
                remedy="free some room and run the same command again: finished chunks are kept",
            ) from None
        raise UserError("cannot write", where=path, got=error.strerror or error) from None
    finally:
        temporary.unlink(missing_ok=True)


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


def environment() -> dict[str, str]:
    """What a run was computed with: versions, processor, cores. Recorded, not part of its identity."""
    names = ("robustgen", "torch", "torchvision", "numpy", "pandas", "pyarrow", "scipy", "pyautoattack")
    found = {name: _version(name) for name in names}
    return {
        **{name: version for name, version in found.items() if version},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _processor(),
        "cores": str(os.cpu_count()),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


class RunStore:
    """The folder of one model's run: ``RunStore.open`` to write, ``RunStore.read`` to read."""

    def __init__(self, path: Path, spec: dict[str, Any], environment: dict[str, Any]) -> None:
        self.path = path
        self.spec = spec
        self.environment = environment

    @classmethod
    def open(cls, path: Path, spec: dict[str, Any], environment: dict[str, Any]) -> RunStore:
        """Begin a run or go on with it; a run of another specification is an error that says what changed."""
        file = path / "run.json"
        if not file.exists():
            content = {"spec": spec, "fingerprint": fingerprint(spec), "environment": environment}
            write_json(file, content)
            return cls(path, spec, environment)
        store = cls.read(path)
        if fingerprint(spec) != fingerprint(store.spec):
            changes = list(_changes(store.spec, spec))
            raise UserError(
                "this folder holds a run of another specification, whose rows cannot be mixed with new ones",
                where=path,
                expected="the same model, data and protocol",
                got="; ".join(changes[:6]),
                remedy=f"choose another --out, or delete {path}",
            )
        return store

    @classmethod
    def read(cls, path: Path) -> RunStore:
        """An existing run."""
        content = read_json(path / "run.json")
        try:
            return cls(path, content["spec"], content["environment"])
        except (KeyError, TypeError) as error:
            raise UserError("this is no run of robustgen", where=path / "run.json", got=error) from None

    @property
    def model(self) -> str:
        return str(self.spec["model"]["name"])

    def done(self) -> set[Chunk]:
        """The finished chunks, by their rows files."""
        return {
            Chunk(file.parent.name, *(int(part) for part in file.stem.split("-")))
            for file in (self.path / "samples").glob("*/[0-9]*-[0-9]*.parquet")
        }

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
        return sum(float(pq.read_metadata(file).metadata[b"seconds"]) for file in files)

    def damaged(self, chunk: Chunk) -> list[str]:
        """Side files of a chunk that are absent or not what was written, by their sha256."""
        file = self.path / "samples" / chunk.evaluation / f"{chunk.stem}.parquet"
        hashes = json.loads(pq.read_metadata(file).metadata[b"sha256"])
        return [name for name, sha256 in hashes.items() if _sha256(self.path / name) != sha256]

    def fail(self, chunk: Chunk, message: str) -> None:
        """Note a chunk that raised."""
        self.path.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"chunk": chunk._asdict(), "time": time.time(), "error": message})
        with (self.path / "errors.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _read(self, kind: str, name: str, n: int | None) -> pa.Table | None:
        files = sorted((self.path / kind / name).glob("[0-9]*-[0-9]*.parquet"))
        if not files:
            return None
        table = pa.concat_tables([read_parquet(file) for file in files])
        ids = np.asarray(table["sample_id"])
        keep = np.argsort(ids, kind="stable")
        if n is not None:
            keep = keep[ids[keep] < n]
        return table.take(pa.array(keep))


def read_parquet(file: Path) -> pa.Table:
    """Read one file with its page checksums verified; a damaged one is a UserError."""
    try:
        return pq.ParquetFile(file, page_checksum_verification=True).read()
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            "a stored chunk is damaged",
            where=file,
            got=str(error).splitlines()[0],
            remedy="delete this file and run the same command again: only this chunk is computed anew",
        ) from None


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


def _changes(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """Every leaf in which two specifications differ, as 'key: old -> new'."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _changes(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield f"{key}: {json.dumps(old)[:80]} -> {json.dumps(new)[:80]}"
