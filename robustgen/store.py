"""The run store: one folder a model, one Parquet file a finished chunk.

    run.json                                      the specification, written first
    samples/<evaluation>/<start>-<stop>.parquet   one row a sample; its presence means the chunk is done
    tables/<evaluation>/<name>/...                readings that are not one row a sample
    adversarial/<evaluation>/...                  the perturbed pictures, float32
    errors.jsonl                                  chunks that raised; they are tried again on the next run

A chunk appears atomically: side files first, the rows file last, with their sha256 in its metadata. There
also stand a hash of the rows themselves and the mark of the run that they belong to, so nothing that
was damaged, and nothing of another run, is ever taken for this run's rows. There is no lock and no single
writer: whoever writes a chunk last has written the same rows.
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

from robustgen.disk import append_line, listed, read_bytes, read_json, remove_stale, set_aside, write_json
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
from robustgen.rowtable import wrong_side
from robustgen.strict import fingerprint

CHUNK = re.compile(r"[0-9]{1,15}-[0-9]{1,15}\.parquet")

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


class Chunk(NamedTuple):
    """Samples start to stop of an evaluation: the unit of resume and shard."""

    evaluation: str
    start: int
    stop: int

    @property
    def stem(self) -> str:
        return f"{self.start:06d}-{self.stop:06d}"


def run_folders(folder: Path) -> list[Path]:
    """The runs of a report, or the one run that a folder is."""
    return [folder] if (folder / "run.json").is_file() else sorted(folder.glob("runs/*"))


class RunStore:
    """The folder of one model's run: ``RunStore.open`` to write, ``RunStore.read`` to read."""

    def __init__(self, path: Path, spec: dict[str, Any], environment: dict[str, Any]) -> None:
        self.path = path
        self.spec = spec
        self.environment = environment
        self._marks: dict[str, str] = {}

    @classmethod
    def open(cls, path: Path, spec: dict[str, Any], environment: dict[str, Any]) -> RunStore:
        """Begin a run or go on with it.

        ``spec`` is all that the report says of a run; rows depend on its ``identity``, and on each
        evaluation's own description. Rows of another identity cannot be mixed with new ones: that
        is an error that says what changed. Evaluations may come and go.
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
                raise UserError(
                    "this folder holds another run, whose rows cannot be mixed with new ones",
                    where=path,
                    expected="the same model, data and protocol",
                    got="; ".join(changes[:6]),
                    remedy=f"choose another --out, or delete {path}",
                )
            # remembered, so that their rows are not taken for those of a later namesake
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
        """Go on without a (sound) run.json: rows that bear this run's mark are kept, others are an error."""
        strange = [chunk for chunk, rows in self._chunks() if not self._adopts(chunk.evaluation, rows)]
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
        """An existing run; a run.json that was edited by hand is refused."""
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
                remedy="run the same command again: it writes this file anew and keeps the rows",
            )
        return cls(path, spec, environment)

    @property
    def model(self) -> str:
        return str(self.spec["model"]["name"])

    def _adopts(self, evaluation: str, rows: Path) -> bool:
        """Whether a rows file bears this run's mark, or is so damaged that it will be set aside."""
        try:
            return read_metadata(rows).get(b"run", b"").decode(errors="replace") == self._mark(evaluation)
        except DamagedError:
            return True

    def finished(self, evaluation: str) -> np.ndarray:
        """The intervals (m, 2) of an evaluation's chunks that have their rows and every side file.

        By listing folders: of a million chunks one is opened, since all of an evaluation have the same side
        files. Marks and checksums are for ``set_aside_damaged``, which looks at every chunk.
        """
        samples = self.path / "samples" / evaluation
        names = {name for name in listed(samples) if CHUNK.fullmatch(name)}
        sides: dict[str, str] = {}
        while names:
            try:
                sides = _sides(read_metadata(samples / min(names)))
                break
            except DamagedError as error:
                self._put_aside(_chunk_of(samples / min(names)), samples / min(names), error)
                names.remove(min(names))
        for folder in {name.rpartition("/")[0] for name in sides}:
            names.intersection_update(listed(self.path / folder))
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
                lost.append(self._put_aside(chunk, file, error))
        return lost

    def _put_aside(self, chunk: Chunk, file: Path, error: DamagedError) -> str:
        """Set a chunk's rows aside, so that it is not finished; returns what errors.jsonl says of it."""
        aside = set_aside(file)
        what = f"a stored chunk was damaged, and set aside as {aside.name}: {error.details['got']}"
        self.log_error(what, chunk, aside=aside.name)
        return f"{chunk.evaluation}, samples {chunk.start} to {chunk.stop}: {what}"

    def _check(self, chunk: Chunk, file: Path, pictures: bool) -> None:
        """Raise DamagedError unless the rows and what was written beside them are what was written."""
        metadata = read_rows(file).schema.metadata
        if not self._ours(chunk.evaluation, metadata):
            raise damaged(file, "its rows are of another run")
        for name, written in _sides(metadata).items():
            side = self.path / name
            wanted = pictures or not name.startswith("adversarial/")
            if wanted and side.is_file() and sha256(read_bytes(side)) != written:
                raise damaged(side, f"{name} is not the file that was written")

    def _chunks(self, evaluation: str = "*") -> Iterator[tuple[Chunk, Path]]:
        """The chunks that have rows, and the files of these, in the order of their samples."""
        for file in sorted((self.path / "samples").glob(f"{evaluation}/[0-9]*-[0-9]*.parquet")):
            if CHUNK.fullmatch(file.name):
                yield _chunk_of(file), file

    def _mark(self, evaluation: str) -> str:
        """Of which run, and of which evaluation of it, rows are: all that they depend on."""
        if evaluation not in self._marks:
            described = _by_name(self.spec["evaluations"] + self.spec.get("retired", [])).get(evaluation)
            self._marks[evaluation] = fingerprint([self.spec.get("identity"), described])
        return self._marks[evaluation]

    def _ours(self, evaluation: str, metadata: Mapping[bytes, bytes]) -> bool:
        """Whether rows are of this run; older versions wrote no mark, and run.json stands for it."""
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
        """Write a finished chunk: side files, then its rows with their sha256.

        ``batch``: how many pictures a call of the model took, where that is not the run's.
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
        """The rows of an evaluation in the order of their samples, the first ``n`` samples only."""
        return self._read("samples", evaluation, n)

    def table(self, evaluation: str, name: str, n: int | None = None) -> pa.Table | None:
        """A table beside the rows, such as ("gradients", "guidance")."""
        return self._read("tables", f"{evaluation}/{name}", n)

    def adversarial(self, evaluation: str, n: int | None = None) -> pa.Table | None:
        """The perturbed pictures: sample_id, image (flattened channels x height x width)."""
        return self._read("adversarial", evaluation, n)

    def chunks(self, evaluation: str) -> list[tuple[int, int]]:
        """Start and stop of the chunks that ``rows`` are of, in their order."""
        return [(chunk.start, chunk.stop) for chunk, _, _ in self._own(evaluation)]

    def seconds(self, evaluation: str, n: int | None = None) -> float:
        """Wall time of an evaluation's chunks, added up; of one that goes beyond ``n``, its share below."""
        found = 0.0
        for chunk, metadata, below in self._own(evaluation, n):
            found += float(metadata[b"seconds"]) * (below / (chunk.stop - chunk.start))
        return found

    def reduced_batches(self, evaluation: str, n: int | None = None) -> dict[int, int]:
        """How many of the first ``n`` samples were computed at a smaller batch than the run's, by batch."""
        found: dict[int, int] = {}
        for _, metadata, below in self._own(evaluation, n):
            if b"batch" in metadata:
                batch = int(metadata[b"batch"])
                found[batch] = found.get(batch, 0) + below
        return found

    def incomplete_samples(self, evaluation: str, n: int | None = None) -> int:
        """How many of the first ``n`` samples have rows but lack a table that was written beside them."""
        have: set[int] = set()
        whole: set[int] = set()
        for chunk, metadata, below in self._own(evaluation, n):
            samples = range(chunk.start, chunk.start + below)
            tables = [name for name in _sides(metadata) if name.startswith("tables/")]
            have.update(samples)
            if all((self.path / name).is_file() for name in tables):
                whole.update(samples)
        return len(have - whole)

    def _own(self, evaluation: str, n: int | None = None) -> Iterator[tuple[Chunk, dict[bytes, bytes], int]]:
        """The chunks that ``rows`` are of, in their order, what each says of itself, and how many of its
        samples are among the first ``n``, 1 at least."""
        for chunk, file in self._chunks(evaluation):
            metadata = read_metadata(file)
            below = min(n or chunk.stop, chunk.stop) - chunk.start
            if below > 0 and self._ours(evaluation, metadata):
                yield chunk, metadata, below

    def damaged_files(self, chunk: Chunk) -> list[str]:
        """The side files of a chunk that are missing, or whose sha256 is not the one recorded in its rows."""
        file = self.path / "samples" / chunk.evaluation / f"{chunk.stem}.parquet"
        hashes = _sides(read_metadata(file))
        paths = {name: self.path / name for name in hashes}
        return [n for n, p in paths.items() if not p.is_file() or sha256(read_bytes(p)) != hashes[n]]

    def log_error(self, message: str, chunk: Chunk | None = None, **more: str) -> None:
        """Append a line to errors.jsonl."""
        about = {"chunk": chunk._asdict()} if chunk else {}
        line = json.dumps({**about, "time": time.time(), "error": redact(message), **more})
        append_line(self.path / "errors.jsonl", line)

    def _read(self, kind: str, name: str, n: int | None) -> pa.Table | None:
        """What the finished chunks of an evaluation have of a kind: rows lead, files beside them follow."""
        covered: set[int] = set()
        tables: list[pa.Table] = []
        for chunk, rows in self._chunks(name.partition("/")[0]):
            side = f"{kind}/{name}/{rows.name}"
            table = read_rows(rows) if kind == "samples" else None
            metadata = read_metadata(rows) if table is None else table.schema.metadata
            if not self._ours(chunk.evaluation, metadata):
                continue
            if table is None:
                if side not in _sides(metadata) or not (self.path / side).is_file():
                    continue
                table = read_parquet(self.path / side)
                shape = self.spec.get("data", {}).get("shape") if kind == "adversarial" else None
                if reason := wrong_side(table, shape):
                    raise damaged(self.path / side, reason)
            if table.schema.types != (tables[0] if tables else table).schema.types:
                raise damaged(self.path / side, "its columns are not those of the other chunks")
            ids = np.asarray(table["sample_id"])
            # Two writers of different chunk borders leave the same samples twice, with the same rows.
            keep = [i not in covered and (n is None or i < n) for i in ids.tolist()]
            covered |= set(ids.tolist())
            tables.append(table.replace_schema_metadata(None).filter(pa.array(keep, pa.bool_())))
        if not tables:
            return None
        table = pa.concat_tables(tables)
        return table.take(pa.array(np.argsort(np.asarray(table["sample_id"]), kind="stable")))


def _chunk_of(file: Path) -> Chunk:
    """The chunk that a file of rows is of, by its place and name."""
    start, stop = file.stem.split("-")
    return Chunk(file.parent.name, int(start), int(stop))


def _sides(metadata: Mapping[bytes, bytes]) -> dict[str, str]:
    """The files beside a chunk's rows, as these name them: path in the run's folder to sha256."""
    return json.loads(metadata[b"sha256"])


def _by_name(evaluations: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {evaluation["name"]: evaluation for evaluation in evaluations}


def _changes(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """Every leaf in which two specifications differ, as 'key: old -> new'."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _changes(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield f"{key}: {json.dumps(old)[:80]} -> {json.dumps(new)[:80]}"
