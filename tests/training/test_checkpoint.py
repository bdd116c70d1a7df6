import errno
import os
import resource
import time
from contextlib import contextmanager

import pytest
import torch
from recipes import only_checkpoint, tiny, write

from robustgen.disk import STALE
from robustgen.errors import DiskFullError, UserError
from robustgen.training import checkpoint
from robustgen.training.loop import train
from robustgen.training.recipe import Recipe


def test_other_data_under_the_same_recipe_is_refused(tmp_path, cache):
    recipe = write(tmp_path, tiny())
    train(recipe, tmp_path / "tiny")
    file = only_checkpoint(cache)
    content = checkpoint.load(file, torch.device("cpu"))
    checkpoint.save(file, content | {"data": "0123456789abcdef"})
    with pytest.raises(UserError) as error:
        train(recipe, tmp_path / "tiny")
    assert "made on other data" in str(error.value)
    assert "0123456789abcdef" in str(error.value)
    assert "--fresh" in str(error.value)
    train(recipe, tmp_path / "tiny", fresh=True)


@pytest.mark.parametrize("left", [0, 1000])
def test_damaged_checkpoint_is_explained(tmp_path, cache, left):
    recipe = write(tmp_path, tiny())
    train(recipe, tmp_path / "tiny")
    file = only_checkpoint(cache)
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(UserError, match="cannot read the checkpoint") as error:
        train(recipe, tmp_path / "tiny")
    assert str(file) in str(error.value)
    train(recipe, tmp_path / "tiny", fresh=True)


def test_checkpoint_never_runs_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"step": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="cannot read the checkpoint"):
        checkpoint.load(tmp_path / "checkpoint.pt", torch.device("cpu"))
    assert not (tmp_path / "ran").exists()


def test_code_and_rhythm_that_decide_the_weights_have_checkpoints_of_their_own(tmp_path):
    def folder(code="", **changes):
        (tmp_path / "model.py").write_text(code)
        return checkpoint.cache_folder(Recipe(**tiny(**changes)), tmp_path)

    assert folder() == folder("x = 1", summary="Other words.", checkpoint_every=7)
    assert folder() != folder(restarts=1) != folder(restarts=1, checkpoint_every=7)
    own = {"arch": "model.py:Net"}
    assert folder("x = 1", **own) == folder("x = 1", checkpoint_every=7, **own)
    assert folder("x = 1", **own) != folder("x = 2", **own)
    (tmp_path / "beside_it.py").write_text("y = 1")
    of_two = folder("import beside_it", **own)
    (tmp_path / "beside_it.py").write_text("y = 2")
    assert folder("import beside_it", **own) != of_two


def test_edited_architecture_begins_anew(tmp_path):
    recipe = write(tmp_path, tiny(arch="model.py:Mine"))
    text = """
from robustgen.classifiers.softmax import Softmax

def Mine(**options):
    return Softmax(**options | {"activation": "%s"})
"""
    weights = []
    for activation in ("silu", "relu"):
        (tmp_path / "model.py").write_text(text % activation)
        folder = train(recipe, tmp_path / activation)
        weights.append((folder / "weights.safetensors").read_bytes())
    assert weights[0] != weights[1]


def test_absent_architecture_is_explained(tmp_path):
    with pytest.raises(UserError, match="cannot read the file") as error:
        checkpoint.cache_folder(Recipe(**tiny(arch="model.py:Net")), tmp_path)
    assert str(tmp_path / "model.py") in str(error.value)


@contextmanager
def largest_file(size):
    """The system refuses to write beyond that size: a real failure of a real write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_failed_write_of_a_checkpoint_is_told_and_leaves_the_old_one(tmp_path):
    path = tmp_path / "folder" / "checkpoint.pt"
    checkpoint.save(path, {"step": 1})
    with largest_file(4096), pytest.raises(UserError, match="cannot write") as error:
        checkpoint.save(path, {"step": 2, "weights": torch.zeros(10_000)})
    assert str(path) in str(error.value)
    assert checkpoint.load(path, torch.device("cpu")) == {"step": 1}
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.pt"]


def test_half_a_checkpoint_that_a_crash_left_is_removed_after_a_day(tmp_path, cache):
    recipe = write(tmp_path, tiny())
    train(recipe, tmp_path / "tiny")
    old, new = (only_checkpoint(cache).with_name(f".checkpoint.pt.{pid}.1.tmp") for pid in (1, 2))
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * STALE,) * 2)
    train(recipe, tmp_path / "tiny")
    assert not old.exists()
    assert new.exists(), "another process may be writing it"


def test_checkpoint_that_cannot_be_taken_away_is_told(tmp_path, cache, monkeypatch):
    recipe = write(tmp_path, tiny())
    train(recipe, tmp_path / "tiny")

    def read_only(path, missing_ok=False):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.unlink", read_only)
    with pytest.raises(UserError, match="cannot write") as error:
        train(recipe, tmp_path / "tiny", fresh=True)
    assert str(only_checkpoint(cache)) in str(error.value)
    assert "Read-only file system" in str(error.value)


def test_full_disk_is_told_and_the_training_goes_on_from_its_checkpoint(tmp_path, cache, monkeypatch):
    recipe = write(tmp_path, tiny())
    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="the disk is full"):
        train(recipe, tmp_path / "tiny")
    assert checkpoint.load(only_checkpoint(cache), torch.device("cpu"))["step"] == 20
    assert not (tmp_path / "tiny").exists()
    assert (train(recipe, tmp_path / "tiny") / "card.yaml").is_file()


def test_curve_drops_what_will_be_done_again_and_what_a_crash_cut_short(tmp_path):
    path = tmp_path / "curve.jsonl"
    curve = checkpoint.Curve(path, 0)
    for step in (10, 20, 30):
        curve.add(step, {"loss": 1 / 3})
    path.write_bytes(path.read_bytes() + b'{"step": 4\xff')
    checkpoint.Curve(path, 20)
    assert path.read_text() == '{"step": 10, "loss": 0.333333}\n{"step": 20, "loss": 0.333333}\n'
    with largest_file(64), pytest.raises(UserError, match="cannot write"):
        curve.add(40, {"loss": 1.0})
