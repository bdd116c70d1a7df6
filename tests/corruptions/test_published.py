"""The published files, very small ones: blocks by severity, md5, the split's order."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustgen.classifiers.base import Classifier
from robustgen.config import Protocol
from robustgen.corruptions import published
from robustgen.corruptions.published import PublishedCorruption
from robustgen.data import Dataset, make
from robustgen.draws import Draws
from robustgen.errors import UserError
from robustgen.plan import plan

N, SIDE = 6, 32
LABELS = np.array([3, 8, 8, 0, 6, 6])


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "root" / published.FOLDER
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    np.save(folder / "fog.npy", rng.integers(0, 256, (5 * N, SIDE, SIDE, 3), dtype=np.uint8))
    np.save(folder / "labels.npy", np.tile(LABELS, 5))
    md5 = {file.stem: hashlib.md5(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    monkeypatch.setattr(published, "MD5", published.MD5 | md5)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    published.check_md5.cache_clear()
    return tmp_path / "root"


def cifar10(labels: np.ndarray = LABELS) -> Dataset:
    pictures = np.random.default_rng(1).integers(0, 256, (len(labels), 3, SIDE, SIDE), dtype=np.uint8)
    return make("cifar10", pictures, labels, [str(k) for k in range(10)], "a few.", where="here")


def planned(root: Path, dataset: Dataset, types: tuple[str, ...] = ("fog", "contrast")) -> Any:
    protocol = Protocol.model_validate(
        {
            "name": "c", "version": 1, "summary": "", "data": {"any": {}},
            "evaluations": [{"kind": "corruptions", "types": list(types), "severities": [1, 5]}],
        }
    )  # fmt: skip
    return plan(protocol, dataset, root)


def test_a_block_is_a_severity_in_test_order(root: Path) -> None:
    file = root / published.FOLDER / "fog.npy"
    ids = torch.tensor([4, 1])
    x = torch.zeros(2, 3, SIDE, SIDE)
    for severity in (1, 3, 5):
        found = PublishedCorruption(file, severity)(Classifier(), x, ids, Draws(0, "fog", ids)).images
        block = np.load(file)[(severity - 1) * N : severity * N]
        np.testing.assert_array_equal((found * 255).round().numpy(), block[[4, 1]].transpose(0, 3, 1, 2))
        assert found.dtype == torch.float32
    with pytest.raises(UserError, match="do not fit this data set"):
        PublishedCorruption(file, 1)(Classifier(), x[:, :, :28, :28], ids, Draws(0, "fog", ids))


def test_published_files_are_preferred_and_what_was_made_again_says_so(root: Path) -> None:
    found = planned(root, cifar10())
    by_name = {e.name: e for e in found.evaluations}
    assert isinstance(by_name["fog-1"].perturbation, PublishedCorruption)
    assert by_name["fog-1"].detail["pictures"].startswith("published, md5 ")
    assert not isinstance(by_name["contrast-1"].perturbation, PublishedCorruption)
    assert by_name["contrast-5"].detail["pictures"] == "regenerated"
    assert found.refused == []


def test_another_split_is_never_matched_with_them(root: Path) -> None:
    for labels in (LABELS[::-1].copy(), LABELS[:5]):
        found = planned(root, cifar10(labels), ("fog",))
        assert {e.detail["pictures"] for e in found.evaluations} == {"regenerated"}
        assert "another order" in found.refused[0]["reason"]


def test_other_data_and_other_names_are_made_here(root: Path) -> None:
    dataset = cifar10()
    other = make("photos", (dataset.images.numpy() * 255).astype(np.uint8), LABELS, ["a"] * 10, "", where="")
    assert [e.detail for e in planned(root, other, ("fog",)).evaluations] == [
        {"type": "fog", "severity": 1}, {"type": "fog", "severity": 5}
    ]  # fmt: skip
    (first, _) = planned(root, dataset, ("imagenet-constants:fog",)).evaluations
    assert first.name == "imagenet-constants-fog-1"
    assert "pictures" not in first.detail


def test_a_damaged_file_is_one_message_and_a_good_one_is_hashed_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(root, cifar10())
    published.check_md5.cache_clear()  # as in the next process
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
        planned(root, cifar10())
    file = root / published.FOLDER / "fog.npy"
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    published.check_md5.cache_clear()
    with pytest.raises(UserError, match="not the published file") as error:
        planned(root, cifar10())
    assert "zenodo" in str(error.value)
