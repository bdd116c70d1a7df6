"""Tables as Parquet files that say themselves whether they are what was written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from robustgen.disk import cannot_read, read_bytes, write_bytes
from robustgen.errors import DamagedError, describe_error
from robustgen.rowtable import wrong_metadata, wrong_rows

BROKEN = (pa.ArrowException, OSError, ValueError, TypeError)
"""What pyarrow raises at a broken file."""
SAID = (b"sha256", b"seconds", b"run", b"batch")
"""What the metadata of a rows file says, beside the hash of it all, ``content``."""


def read_parquet(file: Path) -> pa.Table:
    """Read one file with its page checksums verified; a damaged one is a DamagedError."""
    # In this thread alone: a thread of Arrow's that lets go of these bytes while Python ends aborts it.
    content = pa.BufferReader(read_bytes(file))
    try:
        return pq.ParquetFile(content, page_checksum_verification=True).read(use_threads=False)
    except BROKEN as error:
        raise damaged(file, describe_error(error)) from None


def read_rows(file: Path) -> pa.Table:
    """Read the rows of a chunk; they and their metadata are what was written, or this is a DamagedError."""
    table = read_parquet(file)
    metadata = _complete(file, table.schema.metadata)
    stated = metadata.get(b"content")
    said = {key: value for key, value in metadata.items() if key in SAID}
    if stated is not None and stated.decode(errors="replace") != content_hash(table, said):
        raise damaged(file, "its content is not what was written")
    start, stop = map(int, file.stem.split("-"))
    if reason := wrong_rows(table, start, stop):
        raise damaged(file, reason)
    return table


def content_hash(rows: pa.Table, metadata: Mapping[bytes, bytes]) -> str:
    """A hash of all that rows and their metadata say: page checksums leave out a file's head and foot."""
    digest = hashlib.sha256()
    for name, column in zip(rows.column_names, rows.columns, strict=True):
        digest.update(f"{name} {len(column)} ".encode())
        if pa.types.is_fixed_size_list(column.type):
            for part in column.chunks:
                digest.update(part.flatten().to_numpy(zero_copy_only=False).tobytes())
        else:
            digest.update(repr(column.to_pylist()).encode())
    digest.update(repr(sorted(metadata.items())).encode())
    return digest.hexdigest()


def read_metadata(file: Path) -> dict[bytes, bytes]:
    """What a rows file says of its chunk."""
    try:
        with file.open("rb") as stream:  # of an object only the foot is fetched
            metadata = pq.read_metadata(stream).metadata
    except BROKEN as error:
        if isinstance(error, OSError) and error.errno:  # the disk's word, not the file's
            raise cannot_read(file, error) from None
        raise damaged(file, describe_error(error)) from None
    return _complete(file, metadata)


def _complete(file: Path, metadata: dict[bytes, bytes] | None) -> dict[bytes, bytes]:
    if reason := wrong_metadata(metadata):
        raise damaged(file, reason)
    return metadata or {}


def damaged(file: Path, why: str) -> DamagedError:
    """The error for a file of a chunk that is not what was written."""
    return DamagedError(
        "a stored chunk is damaged",
        where=file,
        expected="what a run of robustgen wrote",
        got=why,
        remedy="run the same command again: it sets this file aside and computes this chunk anew",
    )


def write_parquet(file: Path, table: pa.Table, metadata: dict[bytes, bytes] | None = None) -> str:
    """Write a table and return the sha256 of what was meant to be written, whatever the disk has now."""
    buffer = pa.BufferOutputStream()
    # Files are small and their floats nearly all distinct: a dictionary only adds to them, while floats
    # whose bytes lie together by significance compress (a quarter smaller, with both, on a quick report).
    pq.write_table(
        table.replace_schema_metadata(metadata),
        buffer,
        compression="zstd",
        use_dictionary=False,
        column_encoding=dict.fromkeys(_float_columns(table.schema), "BYTE_STREAM_SPLIT"),
        write_page_checksum=True,
    )
    content = buffer.getvalue().to_pybytes()
    write_bytes(file, content)
    return sha256(content)


def _float_columns(schema: pa.Schema) -> list[str]:
    """The file's paths to the columns that hold floats, in lists and maps too."""
    paths = []
    for field in schema:
        path, kind = field.name, field.type
        while pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_map(kind):
            path += ".key_value.value" if pa.types.is_map(kind) else ".list.element"
            kind = kind.item_type if pa.types.is_map(kind) else kind.value_type
        if pa.types.is_floating(kind):
            paths.append(path)
    return paths


def sha256(content: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
