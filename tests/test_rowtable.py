"""Rows that are none are told from rows before a number is taken of them."""

import pyarrow as pa
import pytest

from benchmarks.malformed_tables import rows_table
from robustgen.rowtable import metadata_problem, row_schema, rows_problem, side_table_problem


def with_values(name: str, values: list) -> pa.Table:
    table = rows_table()
    column = pa.array(values, row_schema(3).field(name).type)
    return table.set_column(table.column_names.index(name), name, column)


def test_sound_rows_have_nothing_wrong():
    assert rows_problem(rows_table(), 0, 6) == ""
    assert (
        metadata_problem({b"sha256": b'{"tables/clean/x/000000-000006.parquet": "0"}', b"seconds": b"1"})
        == ""
    )


@pytest.mark.parametrize(
    ("name", "values", "part"),
    [
        ("sample_id", [0, 1, 2, 3, 4, 4], "a sample twice"),
        ("sample_id", [0, 1, 2, 3, 4, 6], "another chunk"),
        ("logits", [[float("nan"), 0, 0]] + [[0, 0, 0]] * 5, "no numbers"),
        ("logits", [None] + [[0, 0, 0]] * 5, "logits is absent"),
        ("draws_correct", [2] * 6, "verdicts"),
        ("draws", [0] * 6, "verdicts"),
        ("label", [-2] * 6, "labels"),
        ("forwards", [float("inf")] * 6, "calls"),
    ],
)
def test_what_rows_cannot_say(name: str, values: list, part: str):
    assert part in rows_problem(with_values(name, values), 0, 6)


def test_other_columns():
    assert "columns" in rows_problem(rows_table().drop_columns(["label"]), 0, 6)
    assert "columns" in rows_problem(rows_table().drop_columns(["logits"]), 0, 6)


@pytest.mark.parametrize(
    "sides",
    ['{"../x.parquet": ""}', '{"/etc/passwd": ""}', '{"tables/../../x.parquet": ""}', "[]", "{", "[" * 9000],
)
def test_metadata_that_leads_out_of_the_run(sides: str):
    assert metadata_problem({b"sha256": sides.encode(), b"seconds": b"1"})


def test_metadata_without_numbers():
    assert metadata_problem(None)
    assert metadata_problem({b"sha256": b"{}", b"seconds": b"nan"})
    assert metadata_problem({b"sha256": b"{}", b"seconds": b"1", b"batch": b"0"})


def test_what_stands_beside_the_rows():
    ids, pictures = pa.array([0, 1]), pa.array([[0.0] * 4] * 2, pa.list_(pa.float32(), 4))
    sound = pa.table({"sample_id": ids, "image": pictures})
    assert side_table_problem(sound, (1, 2, 2)) == side_table_problem(sound, None) == ""
    assert "pictures of shape (1, 3, 3)" in side_table_problem(sound, (1, 3, 3))
    assert "pictures" in side_table_problem(pa.table({"sample_id": ids, "image": [[0.0] * 4] * 2}), (1, 2, 2))
    assert "pictures" in side_table_problem(pa.table({"sample_id": ids}), (1, 2, 2))
    for other in (["a", "b"], [0, None], [0.5, 1.0]):
        assert "of which samples" in side_table_problem(pa.table({"sample_id": other}), None)
    assert "of which samples" in side_table_problem(pa.table({"image": pictures}), None)
