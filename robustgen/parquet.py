"""Tables as Parquet files with checksums, by which damage is found when they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from robustgen.disk import cannot_read, read_bytes, write_bytes
from robustgen.errors import DamagedError, describe_error
from robustgen.rowtable import metadata_problem, rows_problem

BROKEN = (pa.ArrowException, OSError, ValueError, TypeError)
"""What pyarrow raises for a damaged file."""
HASHED_METADATA = (b"sha256", b"seconds", b"run", b"batch")
"""The metadata of a rows file that its ``content`` hash covers, together with the rows."""


def read_parquet(file: Path) -> pa.Table:
    """Read a file and verify its page checksums. Raises DamagedError if it is damaged."""
    # Single-threaded: an Arrow thread that frees these bytes while Python exits aborts the process.
    content = pa.BufferReader(read_bytes(file))
    try:
        return pq.ParquetFile(content, page_checksum_verification=True).read(use_threads=False)
    except BROKEN as error:
        raise damaged(file, describe_error(error)) from None


def read_rows(file: Path) -> pa.Table:
    """Read the rows of a chunk. Raises DamagedError unless rows and metadata are as they were written."""
    table = read_parquet(file)
    metadata = _complete(file, table.schema.metadata)
    stated = metadata.get(b"content")
    hashed = {key: value for key, value in metadata.items() if key in HASHED_METADATA}
    if stated is not None and stated.decode(errors="replace") != content_hash(table, hashed):
        raise damaged(file, "its content is not what was written")
    start, stop = map(int, file.stem.split("-"))
    if reason := rows_problem(table, start, stop):
        raise damaged(file, reason)
    return table


def content_hash(rows: pa.Table, metadata: Mapping[bytes, bytes]) -> str:
    """A hash of rows and metadata; page checksums do not cover a file's header and footer."""
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
    """The metadata of a rows file."""
    try:
        with file.open("rb") as stream:  # of a remote object only the footer is fetched
            metadata = pq.read_metadata(stream).metadata
    except BROKEN as error:
        if isinstance(error, OSError) and error.errno:  # the disk failed, not the file
            raise cannot_read(file, error) from None
        raise damaged(file, describe_error(error)) from None
    return _complete(file, metadata)


def _complete(file: Path, metadata: dict[bytes, bytes] | None) -> dict[bytes, bytes]:
    if reason := metadata_problem(metadata):
        raise damaged(file, reason)
    return metadata or {}


def damaged(file: Path, why: str) -> DamagedError:
    """The error for a damaged file of a chunk."""
    return DamagedError(
        "a stored chunk is damaged",
        where=file,
        expected="what a run of robustgen wrote",
        got=why,
        remedy="run the 'robustgen report' of this folder again (summary.json has it): it sets this file "
        "aside and computes this chunk anew",
    )


def write_parquet(file: Path, table: pa.Table, metadata: dict[bytes, bytes] | None = None) -> str:
    """Write a table; returns the sha256 of its bytes as they were before the disk could damage them."""
    buffer = pa.BufferOutputStream()
    # Nearly all floats are distinct, so that a dictionary only adds to a file, while splitting them by byte
    # makes them compressible: together a quarter smaller on a quick report.
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
    """The Parquet paths of the columns that hold floats, also inside lists and maps."""
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
    """The sha256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
