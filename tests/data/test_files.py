"""Damaged and wrong files: each is one message that names the file, never a traceback."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from robustgen import data
from robustgen.errors import UserError

PICTURES = np.random.default_rng(0).random((4, 1, 8, 8))


def refused(name: str, root: Path | None = None) -> str:
    """What is said of a data set that cannot be loaded."""
    with pytest.raises(UserError) as error:
        data.load(name, root=root)
    assert error.value.details["where"] is not None
    assert error.value.details["expected"] is not None
    return str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_npz(tmp_path: Path, share: float):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, images=PICTURES, labels=np.zeros(4, np.int64))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    said = refused(str(path))
    assert "cannot read the data set" in said
    assert str(path) in said


@pytest.mark.parametrize("place", [100, 200])
def test_npz_with_wrong_bytes(tmp_path: Path, place: int):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, images=PICTURES, labels=np.zeros(4, np.int64))
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)
    assert "cannot read the data set" in refused(str(path))


def test_npy_under_the_name_of_an_npz(tmp_path: Path):
    np.save(tmp_path / "x.npy", PICTURES)
    (tmp_path / "x.npy").rename(tmp_path / "x.npz")
    assert "cannot read the data set" in refused(str(tmp_path / "x.npz"))


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        (np.array(list("abcd")), "labels must be integers"),
        (np.array(3), "labels must be integers"),
        (np.array([0.7, 1.9, 0.0, 1.0]), "labels must be integers"),
        (np.zeros((4, 1), np.int64), "labels must be integers"),
        (np.array([0, -1, 1, 0]), "label is out of range"),
        (np.full(4, 2**63, np.uint64), "label is out of range"),
        (np.zeros(3, np.int64), "numbers of labels and pictures differ"),
    ],
)
def test_npz_with_wrong_labels(tmp_path: Path, labels: np.ndarray, part: str):
    np.savez(tmp_path / "x.npz", images=PICTURES, labels=labels)
    said = refused(str(tmp_path / "x.npz"))
    assert part in said
    assert str(tmp_path / "x.npz") in said


def _mnist(root: Path, images: bytes, labels: bytes) -> None:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(labels)


def _idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


MNIST = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, _idx(MNIST)[:-5]])
def test_garbage_in_mnists_files(tmp_path: Path, content: bytes):
    _mnist(tmp_path, content, content)
    said = refused("mnist", tmp_path)
    assert "the files of the data set 'mnist' cannot be read" in said
    assert str(tmp_path) in said


def test_mnist_whose_labels_are_of_other_pictures(tmp_path: Path):
    labels = np.arange(20, dtype=np.uint8) % 10
    _mnist(tmp_path / "good", _idx(MNIST), _idx(labels))
    assert data.load("mnist", root=tmp_path / "good").labels.tolist() == labels.tolist()
    _mnist(tmp_path / "bad", _idx(MNIST), _idx(labels[:7]))
    assert "'mnist'" in refused("mnist", tmp_path / "bad")


@pytest.mark.parametrize(
    "columns",
    [
        {"img": [b"no picture"], "label": [0]},
        {"img": [{"bytes": None, "path": "x.png"}], "label": [0]},
        {"img": [{"bytes": b"no picture", "path": None}], "label": [0]},
        {"img": [{"bytes": b"", "path": None}], "label": ["cat"]},
    ],
)
def test_parquet_of_other_columns_and_of_no_pictures(tmp_path: Path, columns: dict[str, list[object]]):
    (tmp_path / "cifar10").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "cifar10" / "test.parquet")
    assert str(tmp_path / "cifar10" / "test.parquet") in refused("cifar10", tmp_path)


def test_a_parquet_of_the_users_own_without_labels_is_not_to_be_fetched_alone(tmp_path: Path):
    pq.write_table(pa.table({"image": [{"bytes": b"", "path": None}]}), tmp_path / "mine.parquet")
    assert "or write it anew if it is your own" in refused(str(tmp_path / "mine.parquet"))


def test_image_folder_with_a_damaged_picture(tmp_path: Path):
    (tmp_path / "cat").mkdir()
    path = tmp_path / "cat" / "0.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:300])
    said = refused(f"imagefolder:{tmp_path}")
    assert "cannot decode the picture" in said
    assert str(path) in said


def _own_parquet(path: Path, n: int, *, colour: bool = False) -> None:
    rng, rows = np.random.default_rng(n), []
    for i in range(n):
        picture, encoded = rng.integers(0, 256, (8, 8, 3) if colour else (8, 8), dtype=np.uint8), io.BytesIO()
        Image.fromarray(picture).save(encoded, "PNG")
        rows.append({"image": {"bytes": encoded.getvalue(), "path": None}, "label": i % 3})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_a_parquet_of_the_users_own(tmp_path: Path):
    _own_parquet(tmp_path / "mine.parquet", 6)
    found = data.load(str(tmp_path / "mine.parquet"))
    assert (found.name, found.shape, found.source) == ("mine", (1, 8, 8), str(tmp_path / "mine.parquet"))
    first = np.random.default_rng(6).integers(0, 256, (8, 8), dtype=np.uint8)
    assert np.array_equal(np.rint(255 * found.images[0, 0].numpy()), first)
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2]
    with pytest.raises(UserError, match="train"):
        data.load(str(tmp_path / "mine.parquet"), "train")
    _own_parquet(tmp_path / "colour.parquet", 6, colour=True)
    assert data.load(str(tmp_path / "colour.parquet")).shape == (3, 8, 8)


def test_the_other_splits_come_from_the_train_parquet_beside_a_test_parquet(tmp_path: Path):
    _own_parquet(tmp_path / "toys" / "test.parquet", 6)
    _own_parquet(tmp_path / "toys" / "train.parquet", 30)
    parts = {split: data.load(str(tmp_path / "toys" / "test.parquet"), split) for split in ("train", "test")}
    parts["calibration"] = data.load(str(tmp_path / "toys" / "test.parquet"), "calibration")
    assert {split: len(part) for split, part in parts.items()} == {"train": 27, "test": 6, "calibration": 3}
    assert {part.name for part in parts.values()} == {"toys"}
    _own_parquet(tmp_path / "toys" / "test.parquet", 2)
    with pytest.raises(UserError, match="classes that the test split lacks"):
        data.load(str(tmp_path / "toys" / "test.parquet"), "train")
