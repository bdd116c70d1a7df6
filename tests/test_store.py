import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robustgen import parquet
from robustgen.disk import set_aside
from robustgen.errors import DamagedError, DiskFullError, UserError
from robustgen.rowtable import row_schema
from robustgen.store import Chunk, RunStore
from robustgen.strict import fingerprint

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


def finished(run: RunStore, evaluation: str = "clean") -> list[list[int]]:
    return sorted(run.finished(evaluation).tolist())


@pytest.fixture
def run(tmp_path: Path) -> RunStore:
    return RunStore.open(tmp_path / "m", SPEC, {"torch": "x"})


def test_a_run_begins_with_its_specification(run: RunStore):
    assert RunStore.read(run.path).spec == SPEC
    assert finished(run) == []


def test_a_chunk_is_done_when_its_rows_are_there(run: RunStore):
    chunk = Chunk("clean", 0, 2)
    run.write(chunk, rows(0, 1))
    assert finished(run) == [[0, 2]]
    assert run.rows("clean").equals(rows(0, 1))


def test_rows_come_in_the_order_of_samples_and_up_to_n(run: RunStore):
    run.write(Chunk("clean", 2, 4), rows(2, 3))
    run.write(Chunk("clean", 0, 2), rows(0, 1))
    assert run.rows("clean")["sample_id"].to_pylist() == [0, 1, 2, 3]
    assert run.rows("clean", 3)["sample_id"].to_pylist() == [0, 1, 2]
    assert run.rows("other") is None


def test_seconds_are_those_of_the_samples_up_to_n_and_of_this_run(run: RunStore):
    run.write(Chunk("clean", 0, 2), rows(0, 1), seconds=2.0)
    run.write(Chunk("clean", 2, 6), rows(2, 3, 4, 5), seconds=8.0)
    assert [run.seconds("clean", n) for n in (1, 2, 3, 6, 9, None)] == [1.0, 2.0, 4.0, 10.0, 10.0, 10.0]
    stray = RunStore(run.path, SPEC | {"identity": {"model": "b"}}, {})
    stray.write(Chunk("clean", 6, 8), rows(6, 7), seconds=5.0)
    assert run.seconds("clean") == 10.0


def test_the_same_identity_goes_on_and_another_is_refused_with_what_changed(run: RunStore):
    RunStore.open(run.path, SPEC, {})
    changed = SPEC | {"identity": {"model": "b", "kernels": {"batch": 32}}}
    with pytest.raises(UserError) as caught:
        RunStore.open(run.path, changed, {})
    assert 'kernels.batch: 64 -> 32; model: "a" -> "b"' in str(caught.value)


def test_a_model_whose_file_was_edited_is_named_with_the_reason(run: RunStore):
    changed = SPEC | {"identity": SPEC["identity"] | {"model": "b"}}
    with pytest.raises(UserError, match=r"take back what changed in mine\.py:linear \(.* comments too\)"):
        RunStore.open(run.path, changed, {"reference": "mine.py:linear"})


def test_another_protocol_is_told_by_its_name_first(tmp_path: Path):
    first = SPEC | {"protocol": {"name": "quick"}, "evaluations": [{"name": "clean", "scores": ["msp"]}]}
    RunStore.open(tmp_path, first, {})
    with pytest.raises(UserError, match=r"got: +protocol: quick -> clean; clean\.scores"):
        RunStore.open(tmp_path, first | SPEC | {"protocol": {"name": "clean"}}, {})


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


def test_the_remedy_for_a_damaged_chunk_is_the_command_that_sets_it_aside(run: RunStore):
    run.write(Chunk("clean", 0, 2), rows(0, 1))
    file = run.path / "samples" / "clean" / "000000-000002.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DamagedError) as caught:
        run.rows("clean")
    assert "run the 'robustgen report' of this folder again" in str(caught.value.details["remedy"])


def test_rows_without_a_specification_are_kept_by_their_own_run_alone(run: RunStore):
    run.write(Chunk("clean", 0, 2), rows(0, 1))
    (run.path / "run.json").unlink()
    with pytest.raises(UserError, match=r"rows but no run\.json"):
        RunStore.open(run.path, SPEC | {"identity": {"model": "b"}}, {})
    assert finished(RunStore.open(run.path, SPEC, {})) == [[0, 2]]


@pytest.mark.parametrize("where", [b'"batch": 64', b'"torch": "x"', b'"fingerprint"', b"{"])
def test_a_damaged_specification_costs_no_rows_of_its_run(run: RunStore, where: bytes):
    run.write(Chunk("clean", 0, 2), rows(0, 1))
    file = run.path / "run.json"
    content = bytearray(file.read_bytes())
    content[content.index(where) + len(where) - 1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamagedError, match="robustgen report"):
        RunStore.read(run.path)
    assert RunStore.find(run.path) is None
    with pytest.raises(UserError, match=r"its run\.json is damaged"):
        RunStore.open(run.path, SPEC | {"identity": {"model": "b"}}, {})
    again = RunStore.open(run.path, SPEC, {"torch": "x"})
    assert again.rows("clean").equals(rows(0, 1))
    assert RunStore.read(run.path).environment == {"torch": "x"}
    assert file.with_name(".run.json.damaged").read_bytes() == content
    assert "run.json was damaged" in (run.path / "errors.jsonl").read_text()


def test_a_run_of_an_older_version_goes_on(run: RunStore):
    run.write(Chunk("clean", 0, 2), rows(0, 1))
    file = run.path / "samples" / "clean" / "000000-000002.parquet"
    pq.write_table(rows(0, 1).replace_schema_metadata({b"sha256": b"{}", b"seconds": b"1.0"}), file)
    old = {"spec": SPEC, "fingerprint": fingerprint(SPEC), "environment": {"torch": "x"}}
    (run.path / "run.json").write_text(json.dumps(old))
    again = RunStore.open(run.path, SPEC, {"torch": "x"})
    assert again.set_aside_damaged() == []
    assert finished(again) == [[0, 2]]
    assert again.rows("clean").equals(rows(0, 1))


def test_rows_of_another_run_that_began_at_once_are_never_taken_for_ones_own(run: RunStore):
    other = RunStore(run.path, SPEC | {"identity": {"model": "b", "kernels": {"batch": 32}}}, {})
    run.write(Chunk("clean", 0, 2), rows(0, 1))
    other.write(Chunk("clean", 2, 4), rows(2, 3))
    assert run.rows("clean").equals(rows(0, 1))
    assert other.rows("clean").equals(rows(2, 3))
    assert len(run.set_aside_damaged()) == 1
    assert finished(run) == [[0, 2]]


def test_a_specification_that_was_edited_is_refused(run: RunStore):
    file = run.path / "run.json"
    file.write_text(file.read_text().replace('"batch": 64', '"batch": 65'))
    with pytest.raises(UserError, match="not the one that was written"):
        RunStore.read(run.path)


def test_a_chunk_without_one_of_its_side_files_is_not_done(run: RunStore):
    chunk = Chunk("gradients", 0, 2)
    run.write(chunk, rows(0, 1), tables={"guidance": rows(0, 1)})
    assert finished(run, "gradients") == [[0, 2]]
    (run.path / "tables" / "gradients" / "guidance" / f"{chunk.stem}.parquet").unlink()
    assert finished(run, "gradients") == []


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
    real = parquet.write_bytes

    def spy(file, content):
        written.append(file.relative_to(run.path).parts[0])
        return real(file, content)

    monkeypatch.setattr(parquet, "write_bytes", spy)
    chunk = Chunk("pgd-linf-0.15", 0, 2)
    pictures = pa.table({"sample_id": [0, 1], "image": pa.array([[0.0], [1.0]], pa.list_(pa.float32(), 1))})
    run.write(chunk, rows(0, 1), tables={"guidance": rows(0, 1)}, adversarial=pictures)
    assert written[-1] == "samples"
    assert set(written[:-1]) == {"tables", "adversarial"}
    assert run.damaged_files(chunk) == []
    file = run.path / "adversarial" / chunk.evaluation / f"{chunk.stem}.parquet"
    pq.write_table(pictures.slice(0, 1), file)
    assert run.damaged_files(chunk) == [f"adversarial/{chunk.evaluation}/{chunk.stem}.parquet"]


def test_a_write_that_is_cut_off_leaves_no_chunk(run: RunStore, monkeypatch):
    real = Path.write_bytes

    def die(path, content):
        real(path, content[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", die)
    with pytest.raises(KeyboardInterrupt):
        run.write(Chunk("clean", 0, 2), rows(0, 1))
    assert finished(run) == []
    assert list((run.path / "samples" / "clean").iterdir()) == []


def test_a_full_disk_is_one_message_and_finished_chunks_stay(run: RunStore, monkeypatch):
    run.write(Chunk("clean", 0, 2), rows(0, 1))

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DiskFullError, match="the disk is full"):
        run.write(Chunk("clean", 2, 4), rows(2, 3))
    assert finished(run) == [[0, 2]]


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_chunk_is_named_with_the_remedy(run: RunStore, damage: str):
    chunk = Chunk("clean", 0, 200)
    run.write(chunk, rows(*range(200)))
    file = run.path / "samples" / "clean" / f"{chunk.stem}.parquet"
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    else:
        first = pq.read_metadata(file).row_group(0).column(0)
        content[first.data_page_offset + first.total_compressed_size - 1] ^= 0xFF  # the page's last byte
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        run.rows("clean")
    assert str(file) in str(caught.value)
    assert "computes this chunk anew" in str(caught.value)


def test_floats_are_stored_by_the_significance_of_their_bytes(run: RunStore):
    """In lists and maps too: pyarrow passes over a path that is not there in silence."""
    run.write(Chunk("clean", 0, 2), rows(0, 1))
    row_group = pq.read_metadata(run.path / "samples/clean/000000-000002.parquet").row_group(0)
    columns = [row_group.column(i) for i in range(row_group.num_columns)]
    split = {c.path_in_schema for c in columns if "BYTE_STREAM_SPLIT" in c.encodings}
    assert split == {c.path_in_schema for c in columns if c.physical_type in ("FLOAT", "DOUBLE")}
    assert {"logits.list.element", "scores.key_value.value"} <= split


def with_sides(run: RunStore) -> Chunk:
    chunk = Chunk("gradients", 0, 2)
    pictures = pa.table({"sample_id": [0, 1], "image": pa.array([[0.0], [1.0]], pa.list_(pa.float32(), 1))})
    run.write(chunk, rows(0, 1), tables={"guidance": rows(0, 1)}, adversarial=pictures, batch=32)
    return chunk


def test_samples_of_a_smaller_batch_are_counted_up_to_n(run: RunStore):
    with_sides(run)
    assert [run.reduced_batches("gradients", n) for n in (None, 5, 1)] == [{32: 2}, {32: 2}, {32: 1}]


def test_who_reads_the_folder_whole_passes_over_what_was_set_aside(run: RunStore):
    chunk = with_sides(run)
    folder = run.path / "samples" / "gradients"
    set_aside(folder / f"{chunk.stem}.parquet")
    with_sides(run)
    assert len(list(folder.iterdir())) == 2
    assert len(pd.read_parquet(folder)) == 2


def test_every_byte_of_a_chunk_is_watched_over(run: RunStore):
    """Wherever a byte of the rows is damaged: found, or of no consequence to anything that is read."""
    chunk = with_sides(run)
    file = run.path / "samples" / "gradients" / f"{chunk.stem}.parquet"
    sound = file.read_bytes()
    found = 0
    for place in range(0, len(sound), 7):
        file.write_bytes(sound[:place] + bytes([sound[place] ^ 0x41]) + sound[place + 1 :])
        lost = run.set_aside_damaged()
        found += len(lost)
        if lost:
            assert not file.exists()
            assert "set aside as .000000-000002.parquet.damaged" in lost[0]
        else:
            assert run.rows("gradients").equals(rows(0, 1))
            assert run.damaged_files(chunk) == []
            assert run.reduced_batches("gradients") == {32: 2}
    assert found > len(sound) / 14  # statistics, which nothing reads, are the rest
    file.write_bytes(sound)
    assert run.set_aside_damaged() == []


@pytest.mark.parametrize("kind", ["tables", "adversarial"])
def test_a_damaged_side_file_costs_its_chunk(run: RunStore, kind: str):
    chunk = with_sides(run)
    (file,) = (run.path / kind).rglob("*.parquet")
    content = bytearray(file.read_bytes())
    content[-6] ^= 1
    file.write_bytes(content)
    if kind == "adversarial":
        assert run.set_aside_damaged(pictures=False) == []
    assert len(run.set_aside_damaged()) == 1
    assert finished(run, chunk.evaluation) == []
    with_sides(run)
    assert finished(run, chunk.evaluation) == [[chunk.start, chunk.stop]]
    assert run.set_aside_damaged() == []


def test_a_table_whose_rows_were_never_written_is_not_read(run: RunStore):
    chunk = with_sides(run)
    (run.path / "samples" / "gradients" / f"{chunk.stem}.parquet").unlink()
    assert run.table("gradients", "guidance") is None
    assert run.adversarial("gradients") is None


def test_a_disk_that_does_not_answer_is_no_reason_to_set_a_chunk_aside(run: RunStore, monkeypatch):
    chunk = with_sides(run)

    def broken(path):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", broken)
        with pytest.raises(UserError, match="cannot read the file"):
            run.set_aside_damaged()
    assert finished(run, chunk.evaluation) == [[chunk.start, chunk.stop]]


def test_what_is_no_run_is_refused(tmp_path: Path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="no run of robustgen"):
        RunStore.read(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match="cannot read"):
        RunStore.read(tmp_path)


def test_temporary_files_of_a_crash_are_removed_after_a_day(run: RunStore):
    old, new = (run.path / f".{name}.tmp" for name in ("old", "new"))
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    RunStore.open(run.path, SPEC, {})
    assert not old.exists()
    assert new.exists()


def test_failures_are_noted_a_line_each(run: RunStore):
    run.log_error("it raised", Chunk("clean", 0, 2))
    run.log_error("it raised again", Chunk("clean", 2, 4))
    lines = (run.path / "errors.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert '"start": 2' in lines[1]


THREADS = """
import os, sys
from pathlib import Path
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from robustgen.parquet import read_parquet
file = Path(sys.argv[1])
pq.write_table(pa.table({name: ["a"] * 64 for name in "abcdefgh"}), file)
before = len(os.listdir("/proc/self/task"))
assert read_parquet(file).num_rows == 64
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the threads of a process are seen in /proc")
def test_reading_leaves_no_thread_that_could_abort_python_at_its_end(tmp_path: Path):
    command = [sys.executable, "-c", THREADS, str(tmp_path / "a.parquet")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "0"


def test_what_is_finished_is_told_though_the_first_file_be_damaged(run: RunStore):
    """A shard reads this alone: what cannot be read is set aside, and is to be done again."""
    for start in (0, 2, 4):
        run.write(Chunk("clean", start, start + 2), rows(start, start + 1))
    first, second, _ = sorted((run.path / "samples" / "clean").iterdir())
    first.write_bytes(b"not parquet at all")
    second.write_bytes(b"")
    assert run.finished("clean").tolist() == [[4, 6]]
    assert (run.path / "errors.jsonl").read_text().count("set aside") == 2
    assert RunStore.read(run.path).finished("clean").tolist() == [[4, 6]]
