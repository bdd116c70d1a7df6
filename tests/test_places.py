"""Results on an object store: a real S3 server on this machine, and no second way through the store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from robustgen import engine, registry
from robustgen.cli import app
from robustgen.disk import append_line, atomic, list_names, read_bytes, write_json
from robustgen.errors import DamagedError, UserError
from robustgen.places import as_path, display_path, is_remote, relative_path, resolve_path
from robustgen.store import RunStore

ARGUMENTS = ["softmax-digits", "--data", "digits", "--protocol", "clean", "--n", "100", "--quiet"]


def test_a_place_is_a_path_of_this_machine_or_a_url(bucket, tmp_path):
    assert as_path("out") == Path("out")
    assert not is_remote(as_path("out"))
    assert is_remote(bucket)
    assert display_path(bucket / "a") == "s3://results/a"
    with pytest.raises(UserError, match="unknown kind of address"):
        as_path("nonsense://a/b")
    assert relative_path(bucket / "a" / "runs", bucket / "a") == "runs"
    assert relative_path(tmp_path / "runs", tmp_path) == "runs"
    assert resolve_path(bucket / "a", "runs") == bucket / "a" / "runs"
    assert resolve_path(tmp_path, relative_path(bucket / "a" / "runs", tmp_path)) == bucket / "a" / "runs"


def test_an_object_appears_whole_and_a_new_one_only_once(bucket):
    path = bucket / "one" / "a.json"
    with pytest.raises(UserError), atomic(path) as temporary:
        raise UserError(str(temporary.write_bytes(b"half a fi")))
    assert list_names(bucket / "one") == []
    write_json(path, [1], new=True)
    with pytest.raises(FileExistsError):
        write_json(path, [2], new=True)
    assert json.loads(read_bytes(path)) == [1]
    write_json(path, [3])
    assert json.loads(read_bytes(path)) == [3]
    assert list_names(bucket / "one") == ["a.json"]
    append_line(bucket / "one" / "lines", "a")
    append_line(bucket / "one" / "lines", "b")
    assert read_bytes(bucket / "one" / "lines") == b"a\nb\n"
    with pytest.raises(DamagedError, match="cannot read the file"):
        read_bytes(bucket / "one" / "absent")


def test_a_bucket_that_is_not_there_is_one_message(bucket):
    with pytest.raises(UserError, match="cannot write") as caught:
        write_json(as_path("s3://elsewhere") / "a.json", [1])
    assert "s3://elsewhere/a.json" in str(caught.value)


def test_a_report_on_an_object_store_has_the_rows_of_one_on_disk_and_mends_what_was_damaged(
    bucket, tmp_path, capsys
):
    for out in (str(tmp_path / "local"), str(bucket / "report")):
        result = CliRunner().invoke(app, ["report", *ARGUMENTS, "--out", out])
        assert result.exit_code == 0, result.output
    remote = RunStore.read(bucket / "report" / "runs" / "softmax-digits")
    local = RunStore.read(tmp_path / "local" / "runs" / "softmax-digits")
    assert remote.rows("clean") == local.rows("clean")
    assert sorted(remote.finished("clean").tolist()) == sorted(local.finished("clean").tolist()) != []
    summary = json.loads(read_bytes(bucket / "report" / "summary.json"))
    assert summary["models"][0]["path"] == "runs/softmax-digits"
    page = read_bytes(bucket / "report" / "index.html")
    assert b"softmax-digits" in page

    rows = bucket / "report" / "runs" / "softmax-digits" / "samples" / "clean" / "000000-000064.parquet"
    content = read_bytes(rows)
    rows.write_bytes(content[:-20])
    steps: list[engine.Step] = []
    (again,) = engine.evaluate(
        registry.resolve("softmax-digits"), registry.load_protocol("clean"), "digits", bucket / "report",
        n=100, progress=steps.append,
    ).runs  # fmt: skip
    assert steps[-1].done == 1
    assert again.rows("clean") == local.rows("clean")
    assert f".{rows.name}.damaged" in list_names(rows.parent)


def test_a_report_on_an_object_store_is_compared_with_one_on_disk(bucket, tmp_path):
    runner = CliRunner()
    for model, out in (("softmax-digits", bucket / "a"), ("cdn-digits", tmp_path / "b")):
        arguments = ["report", model, *ARGUMENTS[1:], "--out", str(out)]
        assert runner.invoke(app, arguments).exit_code == 0
    for out in (tmp_path / "both", bucket / "both"):
        result = runner.invoke(app, ["compare", str(bucket / "a"), str(tmp_path / "b"), "--out", str(out)])
        assert result.exit_code == 0, result.output
        models = json.loads(read_bytes(out / "summary.json"))["models"]
        assert [model["name"] for model in models] == ["softmax-digits", "cdn-digits"]
