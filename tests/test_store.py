import errno
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robustgen import store
from robustgen.errors import UserError
from robustgen.store import Chunk, RunStore, row_schema

SPEC = {
    "identity": {"model": "a", "kernels": {"batch": 64}},
    "model": {"name": "m"},
    "evaluations": [{"name": "clean"}, {"name": "ood-photos", "fingerprint": "x"}],
}


def rows(*ids: int) -> pa.Table:
    columns = {
        "sample_id": list(ids),
        "label": [0] * len(ids),
        "logits": [[float(i), 0.0] for i in ids],
        "draws": [1] * len(ids),
        "draws_correct": [1] * len(ids),
        "forwards": [1.0] * len(ids),
        "backwards": [0.0] * len(ids),
        "seeded_by": ["sample"] * len(ids),
    }
    schema = row_schema(2)
    return pa.table(
        [pa.array(columns.get(f.name) or [None] * len(ids), f.type) for f in schema], schema=schema
    )


@pytest.fixture
def run(tmp_path: Path) -> RunStore:
    return RunStore.open(tmp_path / "m", SPEC, {"torch": "x"})


def test_a_run_begins_with_its_specification(run: RunStore):
    assert RunStore.read(run.path).spec == SPEC
    assert run.done() == set()


def test_a_chunk_is_done_when_its_rows_are_there(run: RunStore):
    chunk = Chunk("clean", 0, 2)
    run.write(chunk, rows(0, 1))
    assert run.done() == {chunk}
    assert run.rows("clean").equals(rows(0, 1))


def test_rows_come_in_the_order_of_samples_and_up_to_n(run: RunStore):
    run.write(Chunk("clean", 2, 4), rows(2, 3))
    run.write(Chunk("clean", 0, 2), rows(0, 1))
    assert run.rows("clean")["sample_id"].to_pylist() == [0, 1, 2, 3]
    assert run.rows("clean", 3)["sample_id"].to_pylist() == [0, 1, 2]
    assert run.rows("other") is None


def test_the_same_identity_goes_on_and_another_is_refused_with_what_changed(run: RunStore):
    RunStore.open(run.path, SPEC, {})
    changed = SPEC | {"identity": {"model": "b", "kernels": {"batch": 32}}}
    with pytest.raises(UserError) as caught:
        RunStore.open(run.path, changed, {})
    assert 'kernels.batch: 64 -> 32; model: "a" -> "b"' in str(caught.value)


def test_words_and_further_evaluations_may_change_but_not_what_an_evaluation_is(run: RunStore):
    words = SPEC | {"model": {"name": "m", "summary": "better words"}}
    fewer = words | {"evaluations": [{"name": "clean"}]}
    more = words | {"evaluations": [{"name": "clean"}, {"name": "ood-letters"}]}
    for spec in (words, fewer, more):
        RunStore.open(run.path, spec, {})
    assert RunStore.read(run.path).spec["model"]["summary"] == "better words"
    # its rows may still be there: a namesake of other data is refused even later
    other = words | {"evaluations": [{"name": "ood-photos", "fingerprint": "y"}]}
    with pytest.raises(UserError, match=r'ood-photos\.fingerprint: "x" -> "y"'):
        RunStore.open(run.path, other, {})
    assert RunStore.open(run.path, SPEC, {}).spec["evaluations"] == SPEC["evaluations"]


def test_rows_without_a_specification_are_not_adopted(run: RunStore):
    run.write(Chunk("clean", 0, 2), rows(0, 1))
    (run.path / "run.json").unlink()
    with pytest.raises(UserError, match=r"rows but no run\.json"):
        RunStore.open(run.path, SPEC, {})


def test_a_specification_that_was_edited_is_refused(run: RunStore):
    file = run.path / "run.json"
    file.write_text(file.read_text().replace('"batch": 64', '"batch": 65'))
    with pytest.raises(UserError, match="not the one that was written"):
        RunStore.read(run.path)


def test_a_chunk_without_one_of_its_side_files_is_not_done(run: RunStore):
    chunk = Chunk("gradients", 0, 2)
    run.write(chunk, rows(0, 1), tables={"guidance": rows(0, 1)})
    assert run.done() == {chunk}
    (run.path / "tables" / "gradients" / "guidance" / f"{chunk.stem}.parquet").unlink()
    assert run.done() == set()


def test_samples_that_two_writers_left_twice_count_once(run: RunStore):
    run.write(Chunk("clean", 0, 3), rows(0, 1, 2))
    run.write(Chunk("clean", 2, 4), rows(2, 3))
    assert run.rows("clean").equals(rows(0, 1, 2, 3))


def test_an_output_path_through_a_file_is_one_message(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        RunStore.open(tmp_path / "file" / "m", SPEC, {})


def test_side_files_are_written_before_the_rows_and_their_hashes_are_kept(run: RunStore, monkeypatch):
    written: list[str] = []
    real = store._write_parquet

    def spy(file, table, metadata=None):
        written.append(file.relative_to(run.path).parts[0])
        return real(file, table, metadata)

    monkeypatch.setattr(store, "_write_parquet", spy)
    chunk = Chunk("pgd-linf-0.15", 0, 2)
    pictures = pa.table({"sample_id": [0, 1], "image": pa.array([[0.0], [1.0]], pa.list_(pa.float32(), 1))})
    run.write(chunk, rows(0, 1), tables={"guidance": rows(0, 1)}, adversarial=pictures)
    assert written[-1] == "samples"
    assert set(written[:-1]) == {"tables", "adversarial"}
    assert run.damaged(chunk) == []
    file = run.path / "adversarial" / chunk.evaluation / f"{chunk.stem}.parquet"
    pq.write_table(pictures.slice(0, 1), file)
    assert run.damaged(chunk) == [f"adversarial/{chunk.evaluation}/{chunk.stem}.parquet"]


def test_a_write_that_is_cut_off_leaves_no_chunk(run: RunStore, monkeypatch):
    def die(*args, **kwargs):
        Path(args[1]).write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", die)
    with pytest.raises(KeyboardInterrupt):
        run.write(Chunk("clean", 0, 2), rows(0, 1))
    assert run.done() == set()
    assert list((run.path / "samples" / "clean").iterdir()) == []


def test_a_full_disk_is_one_message_and_finished_chunks_stay(run: RunStore, monkeypatch):
    run.write(Chunk("clean", 0, 2), rows(0, 1))

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(UserError, match="the disk is full"):
        run.write(Chunk("clean", 2, 4), rows(2, 3))
    assert run.done() == {Chunk("clean", 0, 2)}


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_chunk_is_named_with_the_remedy(run: RunStore, damage: str):
    chunk = Chunk("clean", 0, 200)
    run.write(chunk, rows(*range(200)))
    file = run.path / "samples" / "clean" / f"{chunk.stem}.parquet"
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    else:
        content[60] ^= 0xFF  # within the first data page
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        run.rows("clean")
    assert str(file) in str(caught.value)
    assert "delete this file" in str(caught.value)


def test_what_is_no_run_is_refused(tmp_path: Path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="no run of robustgen"):
        RunStore.read(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match="cannot read"):
        RunStore.read(tmp_path)


def test_failures_are_noted_a_line_each(run: RunStore):
    run.fail(Chunk("clean", 0, 2), "it raised")
    run.fail(Chunk("clean", 2, 4), "it raised again")
    lines = (run.path / "errors.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert '"start": 2' in lines[1]
