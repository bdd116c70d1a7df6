"""The run store: one folder a model, one Parquet file a finished chunk.

    run.json                                      the specification, written first
    samples/<evaluation>/<start>-<stop>.parquet   one row a sample; its presence means the chunk is finished
    tables/<evaluation>/<name>/...                readouts that are not one row a sample
    adversarial/<evaluation>/...                  the perturbed pictures, float32
    errors.jsonl                                  chunks that raised; the next run tries them again

A chunk appears atomically: side files first, the rows file last, with their sha256 in its metadata. The
metadata also has a hash of the rows and a mark of the run that they belong to, so that damaged files and
rows of another run are never taken for this run's. There are no locks, and several processes may write: all
of them write the same rows.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from robustgen.disk import append_line, list_names, read_bytes, read_json, remove_stale, set_aside, write_json
from robustgen.errors import DamagedError, UserError, describe_error
from robustgen.parquet import (
    content_hash,
    damaged,
    read_metadata,
    read_parquet,
    read_rows,
    sha256,
    write_parquet,
)
from robustgen.redact import redact
from robustgen.rowtable import side_table_problem
from robustgen.strict import fingerprint

CHUNK_FILE = re.compile(r"[0-9]{1,15}-[0-9]{1,15}\.parquet")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
"""Names of models and evaluations, which are folders too."""


class Chunk(NamedTuple):
    """The samples from ``start`` to before ``stop`` of an evaluation: the unit of resume and shard."""

    evaluation: str
    start: int
    stop: int

    @property
    def stem(self) -> str:
        return f"{self.start:06d}-{self.stop:06d}"


def run_folders(folder: Path) -> list[Path]:
    """The runs of a report's folder; the folder itself if it is a run."""
    return [folder] if (folder / "run.json").is_file() else sorted(folder.glob("runs/*"))


def undo_change(reference: object) -> str:
    """The remedy where a model is not the one of its run."""
    return f"take back what changed in {reference} (of a Python file every line counts, comments too)"


class RunStore:
    """The folder of one model's run: ``RunStore.open`` to write, ``RunStore.read`` to read."""

    def __init__(self, path: Path, spec: dict[str, Any], environment: dict[str, Any]) -> None:
        self.path = path
        self.spec = spec
        self.environment = environment
        self._marks: dict[str, str] = {}

    @classmethod
    def open(cls, path: Path, spec: dict[str, Any], environment: dict[str, Any]) -> RunStore:
        """Begin a run, or continue it.

        Rows depend on the ``identity`` in ``spec`` and on the description of their evaluation. Raises
        UserError, which lists what changed, if the folder has rows of another identity. Evaluations may be
        added and left out.
        """
        file = path / "run.json"
        begun = cls.find(path)
        if begun is not None:
            old = begun.spec
            changes = list(_changes(old["identity"], spec["identity"]))
            before, now = (_by_name(s["evaluations"] + s.get("retired", [])) for s in (old, spec))
            changes += [
                c for name in before.keys() & now.keys() for c in _changes(before[name], now[name], name)
            ]
            if changes:
                names = [s.get("protocol", {}).get("name") for s in (old, spec)]
                changes = ([f"protocol: {names[0]} -> {names[1]}"] if names[0] != names[1] else []) + changes
                remedy = f"choose another --out, or delete {path}"
                if old["identity"].get("model") != spec["identity"].get("model"):
                    remedy = f"{undo_change(environment.get('reference', 'the model'))}, or {remedy}"
                raise UserError(
                    "this folder holds another run, whose rows cannot be mixed with new ones",
                    where=path,
                    expected="the same model, data and protocol",
                    got="; ".join(changes[:6]),
                    remedy=remedy,
                )
            # kept, so that their rows are not taken for those of a later evaluation of the same name
            spec = spec | {"retired": [before[name] for name in sorted(before.keys() - now.keys())]}
        store = cls(path, spec, environment)
        if begun is None:
            store._adopt(file)
        remove_stale(path)
        checksum = fingerprint([spec, environment])
        content = {"spec": spec, "fingerprint": checksum, "environment": environment}
        try:
            write_json(file, content, new=begun is None)
        except FileExistsError:  # another process has just begun this run
            return cls.open(path, spec, environment)
        return store

    @classmethod
    def find(cls, path: Path) -> RunStore | None:
        """The run in a folder; None if there is none, or if its run.json is damaged."""
        try:
            return cls.read(path) if (path / "run.json").exists() else None
        except DamagedError:
            return None

    def _adopt(self, file: Path) -> None:
        """Begin in a folder whose run.json is missing or damaged: keep rows with this run's mark.

        Raises UserError if there are others.
        """
        strange = [chunk for chunk, rows in self._chunks() if not self._is_adoptable(chunk.evaluation, rows)]
        broken = file.exists()
        if strange:
            raise UserError(
                f"this folder has rows but {'its run.json is damaged' if broken else 'no run.json'}, and the "
                "rows are not those of this run",
                where=self.path,
                got=f"{strange[0].evaluation}, samples {strange[0].start} to {strange[0].stop}",
                remedy=f"give the command that made them, choose another --out, or delete {self.path}",
            )
        if broken:
            aside = set_aside(file)
            self.log_error(
                f"run.json was damaged and written anew; {aside.name} is the old one", aside=aside.name
            )

    @classmethod
    def read(cls, path: Path) -> RunStore:
        """Open an existing run for reading. Raises DamagedError if its run.json was changed by hand."""
        content = read_json(path / "run.json")
        try:
            spec, environment, stated = content["spec"], content["environment"], content["fingerprint"]
            described = spec["evaluations"] + spec.get("retired", [])
            names = [spec["model"]["name"], *(evaluation["name"] for evaluation in described)]
            spec["identity"], environment.get("reference")
            if not all(map(NAME.fullmatch, names)):  # they are names of folders
                raise ValueError(f"a name with more than [a-z0-9._-] in it, among {names[:3]}")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DamagedError(
                "this is no run of robustgen", where=path / "run.json",
                expected="what 'robustgen report' wrote",
                got=describe_error(error), remedy="name the folder of a report",
            ) from None  # fmt: skip
        checksums = [fingerprint([spec, environment]), fingerprint(spec)]  # the latter: older runs
        if stated not in checksums:
            raise DamagedError(
                "the specification is not the one that was written",
                where=path / "run.json",
                expected=f"fingerprint {stated}",
                got=checksums[0],
                remedy="run the 'robustgen report' of this folder again (summary.json has it): it writes "
                "this file anew and keeps the rows",
            )
        return cls(path, spec, environment)

    @property
    def model(self) -> str:
        return str(self.spec["model"]["name"])

    def _is_adoptable(self, evaluation: str, rows: Path) -> bool:
        """Whether a rows file has this run's mark, or is so damaged that it will be set aside."""
        try:
            return read_metadata(rows).get(b"run", b"").decode(errors="replace") == self._mark(evaluation)
        except DamagedError:
            return True

    def finished(self, evaluation: str) -> np.ndarray:
        """The intervals (m, 2) of an evaluation's chunks that have their rows and all side files.

        This lists folders and opens a single chunk, which tells the side files of all, so that a million
        chunks are quick. ``set_aside_damaged`` is what checks marks and checksums.
        """
        samples = self.path / "samples" / evaluation
        names = {name for name in list_names(samples) if CHUNK_FILE.fullmatch(name)}
        sides: dict[str, str] = {}
        while names:
            try:
                sides = _side_files(read_metadata(samples / min(names)))
                break
            except DamagedError as error:
                self._set_aside(_chunk_of(samples / min(names)), samples / min(names), error)
                names.remove(min(names))
        for folder in {name.rpartition("/")[0] for name in sides}:
            names.intersection_update(list_names(self.path / folder))
        bounds = " ".join(names).replace(".parquet", "").replace("-", " ")
        return np.fromstring(bounds, dtype=np.int64, sep=" ").reshape(-1, 2)

    def set_aside_damaged(self, *, pictures: bool = True) -> list[str]:
        """Read every finished chunk in full and rename the damaged ones, so that they count as not finished.

        Returns a message for each, which errors.jsonl gets too. ``pictures=False`` skips the adversarial
        pictures, the bulk of a run.
        """
        lost = []
        for chunk, file in self._chunks():
            try:
                self._check(chunk, file, pictures)
            except DamagedError as error:
                lost.append(self._set_aside(chunk, file, error))
        return lost

    def _set_aside(self, chunk: Chunk, file: Path, error: DamagedError) -> str:
        """Rename a chunk's rows, so that it is not finished; returns the message for errors.jsonl."""
        aside = set_aside(file)
        what = f"a stored chunk was damaged, and set aside as {aside.name}: {error.details['got']}"
        self.log_error(what, chunk, aside=aside.name)
        return f"{chunk.evaluation}, samples {chunk.start} to {chunk.stop}: {what}"

    def _check(self, chunk: Chunk, file: Path, pictures: bool) -> None:
        """Raise DamagedError unless the rows and their side files are as they were written."""
        metadata = read_rows(file).schema.metadata
        if not self._is_ours(chunk.evaluation, metadata):
            raise damaged(file, "its rows are of another run")
        for name, written in _side_files(metadata).items():
            side = self.path / name
            wanted = pictures or not name.startswith("adversarial/")
            if wanted and side.is_file() and sha256(read_bytes(side)) != written:
                raise damaged(side, f"{name} is not the file that was written")

    def _chunks(self, evaluation: str = "*") -> Iterator[tuple[Chunk, Path]]:
        """The chunks that have rows, each with its rows file, in the order of samples."""
        for file in sorted((self.path / "samples").glob(f"{evaluation}/[0-9]*-[0-9]*.parquet")):
            if CHUNK_FILE.fullmatch(file.name):
                yield _chunk_of(file), file

    def _mark(self, evaluation: str) -> str:
        """The mark of a rows file's run: a hash of all that rows of this evaluation depend on."""
        if evaluation not in self._marks:
            described = _by_name(self.spec["evaluations"] + self.spec.get("retired", [])).get(evaluation)
            self._marks[evaluation] = fingerprint([self.spec.get("identity"), described])
        return self._marks[evaluation]

    def _is_ours(self, evaluation: str, metadata: Mapping[bytes, bytes]) -> bool:
        """Whether rows belong to this run; rows of older versions have no mark and are taken to."""
        mark = metadata.get(b"run")
        return mark is None or mark.decode(errors="replace") == self._mark(evaluation)

    def write(
        self,
        chunk: Chunk,
        rows: pa.Table,
        *,
        tables: Mapping[str, pa.Table] | None = None,
        adversarial: pa.Table | None = None,
        seconds: float = 0.0,
        batch: int | None = None,
    ) -> None:
        """Write a finished chunk: side files first, then its rows, which hold the side files' sha256.

        ``batch``: the batch size, if it was not the run's.
        """
        side = {f"tables/{chunk.evaluation}/{name}": table for name, table in (tables or {}).items()}
        if adversarial is not None:
            side[f"adversarial/{chunk.evaluation}"] = adversarial
        hashes = {}
        for folder, table in side.items():
            name = f"{folder}/{chunk.stem}.parquet"
            hashes[name] = write_parquet(self.path / name, table)
        metadata = {
            b"sha256": json.dumps(hashes).encode(),
            b"seconds": f"{seconds:.6f}".encode(),
            b"run": self._mark(chunk.evaluation).encode(),
        }
        if batch is not None:
            metadata[b"batch"] = str(batch).encode()
        metadata[b"content"] = content_hash(rows, metadata).encode()
        write_parquet(self.path / "samples" / chunk.evaluation / f"{chunk.stem}.parquet", rows, metadata)

    def rows(self, evaluation: str, n: int | None = None) -> pa.Table | None:
        """The rows of an evaluation, of its first ``n`` samples, by sample id; None if there are none."""
        return self._read("samples", evaluation, n)

    def table(self, evaluation: str, name: str, n: int | None = None) -> pa.Table | None:
        """A table that a readout wrote beside the rows, such as ("gradients", "guidance")."""
        return self._read("tables", f"{evaluation}/{name}", n)

    def adversarial(self, evaluation: str, n: int | None = None) -> pa.Table | None:
        """The perturbed pictures: sample_id, image (flattened channels x height x width)."""
        return self._read("adversarial", evaluation, n)

    def chunks(self, evaluation: str) -> list[tuple[int, int]]:
        """Start and stop of the chunks that ``rows`` reads, in its order."""
        return [(chunk.start, chunk.stop) for chunk, _, _ in self._own_chunks(evaluation)]

    def seconds(self, evaluation: str, n: int | None = None) -> float:
        """Total wall time of an evaluation's chunks; of a chunk that goes beyond ``n``, its share below."""
        found = 0.0
        for chunk, metadata, below in self._own_chunks(evaluation, n):
            found += float(metadata[b"seconds"]) * (below / (chunk.stop - chunk.start))
        return found

    def reduced_batches(self, evaluation: str, n: int | None = None) -> dict[int, int]:
        """How many of the first ``n`` samples were computed at a smaller batch than the run's, by batch."""
        found: dict[int, int] = {}
        for _, metadata, below in self._own_chunks(evaluation, n):
            if b"batch" in metadata:
                batch = int(metadata[b"batch"])
                found[batch] = found.get(batch, 0) + below
        return found

    def incomplete_samples(self, evaluation: str, n: int | None = None) -> int:
        """How many of the first ``n`` samples have rows but lack a table that was written beside them."""
        have: set[int] = set()
        whole: set[int] = set()
        for chunk, metadata, below in self._own_chunks(evaluation, n):
            samples = range(chunk.start, chunk.start + below)
            tables = [name for name in _side_files(metadata) if name.startswith("tables/")]
            have.update(samples)
            if all((self.path / name).is_file() for name in tables):
                whole.update(samples)
        return len(have - whole)

    def _own_chunks(
        self, evaluation: str, n: int | None = None
    ) -> Iterator[tuple[Chunk, dict[bytes, bytes], int]]:
        """The chunks that ``rows`` reads: chunk, metadata, and how many of its samples are below ``n``."""
        for chunk, file in self._chunks(evaluation):
            metadata = read_metadata(file)
            below = min(n or chunk.stop, chunk.stop) - chunk.start
            if below > 0 and self._is_ours(evaluation, metadata):
                yield chunk, metadata, below

    def damaged_files(self, chunk: Chunk) -> list[str]:
        """The side files of a chunk that are missing, or whose sha256 is not the one recorded in its rows."""
        file = self.path / "samples" / chunk.evaluation / f"{chunk.stem}.parquet"
        hashes = _side_files(read_metadata(file))
        paths = {name: self.path / name for name in hashes}
        return [n for n, p in paths.items() if not p.is_file() or sha256(read_bytes(p)) != hashes[n]]

    def log_error(self, message: str, chunk: Chunk | None = None, **more: str) -> None:
        """Append a line to errors.jsonl."""
        about = {"chunk": chunk._asdict()} if chunk else {}
        line = json.dumps({**about, "time": time.time(), "error": redact(message), **more})
        append_line(self.path / "errors.jsonl", line)

    def _read(self, kind: str, name: str, n: int | None) -> pa.Table | None:
        """One kind of file of all of an evaluation's chunks that have rows, as one table by sample id."""
        covered: set[int] = set()
        tables: list[pa.Table] = []
        for chunk, rows in self._chunks(name.partition("/")[0]):
            side = f"{kind}/{name}/{rows.name}"
            table = read_rows(rows) if kind == "samples" else None
            metadata = read_metadata(rows) if table is None else table.schema.metadata
            if not self._is_ours(chunk.evaluation, metadata):
                continue
            if table is None:
                if side not in _side_files(metadata) or not (self.path / side).is_file():
                    continue
                table = read_parquet(self.path / side)
                shape = self.spec.get("data", {}).get("shape") if kind == "adversarial" else None
                if reason := side_table_problem(table, shape):
                    raise damaged(self.path / side, reason)
            if table.schema.types != (tables[0] if tables else table).schema.types:
                raise damaged(self.path / side, "its columns are not those of the other chunks")
            ids = np.asarray(table["sample_id"])
            # Two runs with different chunk borders may store a sample twice, with the same row.
            keep = [i not in covered and (n is None or i < n) for i in ids.tolist()]
            covered |= set(ids.tolist())
            tables.append(table.replace_schema_metadata(None).filter(pa.array(keep, pa.bool_())))
        if not tables:
            return None
        table = pa.concat_tables(tables)
        return table.take(pa.array(np.argsort(np.asarray(table["sample_id"]), kind="stable")))


def _chunk_of(file: Path) -> Chunk:
    """The chunk of a rows file, from its path."""
    start, stop = file.stem.split("-")
    return Chunk(file.parent.name, int(start), int(stop))


def _side_files(metadata: Mapping[bytes, bytes]) -> dict[str, str]:
    """The side files that a chunk's rows name: path in the run's folder to sha256."""
    return json.loads(metadata[b"sha256"])


def _by_name(evaluations: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {evaluation["name"]: evaluation for evaluation in evaluations}


def _changes(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """Every value in which two specifications differ, as 'key: old -> new'."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _changes(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield f"{key}: {json.dumps(old)[:80]} -> {json.dumps(new)[:80]}"
