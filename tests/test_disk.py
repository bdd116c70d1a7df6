"""Files appear whole or not at all, and what goes wrong is said in words."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from robustgen import disk
from robustgen.errors import DamagedError, DiskFullError, UserError


@pytest.mark.parametrize("step", ["write_bytes", "open", "replace"])
@pytest.mark.parametrize(
    ("code", "says"), [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "cannot write")]
)
def test_whatever_step_fails_the_old_file_stays_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch, step, code, says
):
    file = tmp_path / "file"
    disk.write_bytes(file, b"old")

    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(Path, step, fail)
        with pytest.raises(UserError, match=says) as caught:
            disk.write_bytes(file, b"new")
    assert isinstance(caught.value, DiskFullError) is (code == errno.ENOSPC)
    assert "run the same command again" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert file.read_bytes() == b"old"


def test_a_line_after_one_that_was_cut_off_is_a_line_of_its_own(tmp_path: Path):
    file = tmp_path / "lines"
    disk.append_line(file, "one")
    disk.append_line(file, "two")
    file.write_bytes(file.read_bytes()[:-2])
    disk.append_line(file, "three")
    assert file.read_text().splitlines() == ["one", "tw", "three"]


def test_what_is_no_json_is_damaged_and_what_cannot_be_read_is_not(tmp_path: Path):
    file = tmp_path / "file.json"
    disk.write_json(file, {"a": 1})
    assert disk.read_json(file) == {"a": 1}
    for content in (b"{", b"\xff\xfe", json.dumps("x").encode()[:-1]):
        file.write_bytes(content)
        with pytest.raises(DamagedError, match="cannot read"):
            disk.read_json(file)
    with pytest.raises(UserError) as caught:
        disk.read_json(tmp_path)
    assert not isinstance(caught.value, DamagedError)


def test_a_damaged_file_is_set_aside_and_a_second_time_is_no_error(tmp_path: Path):
    file = tmp_path / "x.parquet"
    file.write_bytes(b"broken")
    aside = disk.set_aside(file)
    assert (aside.name, aside.read_bytes(), file.exists()) == (".x.parquet.damaged", b"broken", False)
    assert disk.set_aside(file) == aside
