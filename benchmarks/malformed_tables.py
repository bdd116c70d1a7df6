"""Makers of broken Parquet files, as malformed_files.py has them for the other inputs: a run's stored rows,
and pictures in Hugging Face's form."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.malformed_files import Case, broken_bytes, picture
from robustgen import data
from robustgen.metrics.rows import Rows, read_run
from robustgen.parquet import HASHED_METADATA, content_hash
from robustgen.rowtable import row_schema
from robustgen.store import Chunk, RunStore

SPEC = {
    "identity": {"model": "m"}, "model": {"name": "m", "num_classes": 3},
    "evaluations": [{"name": "clean", "kind": "clean", "data": "digits", "size": 6}],
}  # fmt: skip


def rows_table(count: int = 6) -> pa.Table:
    """Sound rows of the samples 0 to count - 1."""
    columns = {
        "sample_id": list(range(count)), "label": [i % 3 for i in range(count)],
        "logits": [[float(i == k) for k in range(3)] for i in range(count)], "draws": [1] * count,
        "draws_correct": [i % 2 for i in range(count)], "scores": [{"energy": 0.5}] * count,
        "forwards": [1.0] * count, "backwards": [0.0] * count, "seeded_by": ["sample"] * count,
    }  # fmt: skip
    schema = row_schema(3)
    return pa.table([pa.array(columns.get(f.name) or [None] * count, f.type) for f in schema], schema=schema)


def rows(chance: Random, folder: Path) -> Case:
    """A run one of whose chunks is broken in its bytes, in its table, or in what it says of itself."""
    store = RunStore.open(folder / "m", SPEC, {"reference": "m"})
    sound = rows_table()
    store.write(Chunk("clean", 0, 6), sound)
    (file,) = (folder / "m").glob("samples/clean/*.parquet")
    how = chance.choice(("bytes", "bytes", "table", "table", "metadata", "name"))
    if how == "bytes":
        how, content = broken_bytes(chance, file.read_bytes())
        file.write_bytes(content)
    elif how == "table":
        how, table = _broken_rows(chance, sound)
        said = {key: value for key, value in pq.read_schema(file).metadata.items() if key in HASHED_METADATA}
        if chance.random() < 0.7:  # who forges rows can forge their hash
            said[b"content"] = content_hash(table, said).encode()
        pq.write_table(table.replace_schema_metadata(said), file)
    elif how == "metadata":
        metadata = dict(pq.read_schema(file).metadata)
        key = chance.choice((b"sha256", b"seconds", b"batch", b"content", b"run"))
        metadata[key] = chance.choice(
            (b"", b"{", b"[]", b'{"../../x": "0"}', b'{"/dev/zero": ""}', b"nan", b"\xff")
        )
        how = f"{key!r} is {metadata[key]!r}"
        if key in HASHED_METADATA:
            said = {k: v for k, v in metadata.items() if k in HASHED_METADATA}
            metadata[b"content"] = content_hash(sound, said).encode()
        pq.write_table(sound.replace_schema_metadata(metadata), file)
    else:
        other = chance.choice(("0a-1b", "000006-000012", "000000-000003", "1-2-3", "9" * 40 + "-1"))
        how, _ = f"named {other}", file.rename(file.with_name(f"{other}.parquet"))

    def read() -> Rows | None:
        found = RunStore.read(folder / "m")
        for start, stop in found.finished("clean"):
            found.damaged_files(Chunk("clean", start, stop))
        return read_run(found).evaluations["clean"].rows

    return Case(how, read, lambda found: found is None or _same_rows(found, sound))


def _same_rows(found: Rows, sound: pa.Table) -> bool:
    logits = np.asarray(sound["logits"].to_pylist())
    return (
        found.ids.tolist() == sound["sample_id"].to_pylist()
        and np.array_equal(found.logits, logits)
        and found.draws_correct.tolist() == sound["draws_correct"].to_pylist()
    )


def _broken_rows(chance: Random, table: pa.Table) -> tuple[str, pa.Table]:
    """A table that is no chunk's rows: a column is gone, of another type, or holds what cannot be."""
    name = chance.choice(table.column_names)
    place = table.column_names.index(name)
    how = chance.choice(("gone", "text", "null", "more", "empty", "values", "values", "values"))
    if how == "gone":
        return f"no {name}", table.drop_columns([name])
    if how in ("text", "null"):
        column = pa.array(["x"] * len(table)) if how == "text" else pa.nulls(len(table))
        return f"{name} is {how}", table.set_column(place, name, column)
    if how == "more":
        return "one column more", table.append_column("../x", pa.array(range(len(table))))
    if how == "empty":
        return "logits of no class", table.set_column(
            2, "logits", pa.array([[]] * 6, pa.list_(pa.float32(), 0))
        )
    values: dict[str, Any] = {
        "sample_id": chance.choice(([0, 1, 2, 3, 4, 4], [0, 1, 2, 3, 4, 6], [-1, 1, 2, 3, 4, 5])),
        "label": [-2, 0, 0, 0, 0, 0], "logits": [[float("nan")] * 3] + [[0.0] * 3] * 5,
        "draws": [0] + [1] * 5, "draws_correct": chance.choice(([2] * 6, [-1] * 6)),
        "forwards": [float("inf")] * 6, "backwards": [-1.0] * 6,
    }  # fmt: skip
    name = chance.choice(sorted(values))
    schema = row_schema(3)
    column = pa.array(values[name], schema.field(name).type)
    return f"{name} {values[name][:2]}", table.set_column(table.column_names.index(name), name, column)


# --- pictures in Hugging Face's form -------------------------------------------------------------------


def image_parquet(chance: Random, folder: Path) -> Case:
    """A test split of CIFAR-10 as parquet, broken in its bytes, its columns or its pictures."""
    kind = chance.choice(("PNG", "JPEG"))
    encoded: list[Any] = [picture(chance, kind) for _ in range(4)]
    labels: Any = pa.array([0, 1, 0, 1])
    names: Any = ["a", "b"]
    how = chance.choice(
        ("bytes", "bytes", "picture", "picture", "labels", "names", "columns", "sizes", "mode")
    )
    victim = chance.randrange(4)
    if how == "picture":
        encoded[victim] = chance.choice((None, b"", b"no picture", broken_bytes(chance, encoded[victim])[1]))
    elif how == "sizes":
        encoded[victim] = picture(chance, kind, size=(9, 8))
    elif how == "mode":
        encoded[victim] = picture(chance, "PNG", chance.choice(("I;16", "L", "RGBA")))
    elif how == "labels":
        wrong: list[list[Any]] = [
            [0.5] * 4,
            [-1, 0, 0, 0],
            [None, 0, 0, 0],
            ["a"] * 4,
            [0, 1, 0, 2],
            [2**40] * 4,
        ]
        labels = pa.array(chance.choice(wrong))
    elif how == "names":
        names = chance.choice((["a"], "ab", {"a": 1}, 3, [1, None], ["a", "b", "b"]))
    column: Any = pa.array([{"bytes": content, "path": None} for content in encoded])
    if how == "columns":
        column = chance.choice((pa.array(["x"] * 4), pa.array([{"path": "x"}] * 4), pa.array([1, 2, 3, 4])))
    features = {"info": {"features": {"label": {"names": names}}}}
    said: Any = json.dumps(features) if chance.random() < 0.9 else chance.choice(("{", "[]", '{"info": 3}'))
    table = pa.table({chance.choice(("img", "image")): column, "label": labels})
    (folder / "cifar10").mkdir()
    file = folder / "cifar10" / "test.parquet"
    pq.write_table(
        table.replace_schema_metadata({b"huggingface": said}), file, write_page_checksum=chance.random() < 0.5
    )
    if how == "bytes":
        how, content = broken_bytes(chance, file.read_bytes())
        file.write_bytes(content)
    return Case(how, lambda: data.load("cifar10", root=folder), lambda found: _as_said(found, file))


def _as_said(found: data.Dataset, file: Path) -> bool:
    """Whether pictures and labels are those of the file, each decoded by Pillow, and of as many classes."""
    table = pq.read_table(file)
    name = "img" if "img" in table.column_names else "image"
    pictures = []
    for row in table[name].to_pylist():
        with Image.open(io.BytesIO(row["bytes"])) as opened:
            if opened.mode.startswith(("I", "F")):
                return False
            pictures.append(np.asarray(opened.convert("RGB")).transpose(2, 0, 1))
    pixels = (found.images.numpy() * 255).round().astype(np.uint8)
    labels = table["label"].to_pylist()
    named = len(set(found.class_names)) == len(found.class_names) and all(
        isinstance(name, str) for name in found.class_names
    )
    return named and np.array_equal(pixels, np.stack(pictures)) and found.labels.tolist() == labels


KINDS: dict[str, Callable[[Random, Path], Case]] = {"rows": rows, "parquet": image_parquet}
