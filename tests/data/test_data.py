import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from robustgen import data
from robustgen.data import bundled
from robustgen.errors import UserError


def test_digits_are_split_into_three_parts_that_share_no_sample():
    parts = {split: data.load("digits", split) for split in ("train", "calibration", "test")}
    assert [len(parts[s]) for s in ("train", "calibration", "test")] == [1197, 200, 400]
    together = torch.cat([part.images.flatten(1) for part in parts.values()]).numpy()
    original = load_digits().data.astype(np.float32) / 16
    # the same 1,797 pictures, each once: equal as sorted lists
    assert np.array_equal(np.sort(together.view("f4,f4"), axis=0), np.sort(original.view("f4,f4"), axis=0))


def test_digits_keep_their_native_size_and_grey_levels():
    digits = data.load("digits")
    assert digits.shape == (1, 8, 8)
    assert torch.equal((digits.images * 16).round() / 16, digits.images)


def test_the_fingerprint_is_stable_and_sees_one_pixel_and_one_label():
    digits = data.load("digits")
    assert digits.fingerprint == data.load("digits").fingerprint
    images, labels = digits.images.clone(), digits.labels.clone()
    images[0, 0, 0, 0] += 0.5
    labels[0] += 1
    changed = [
        data.make("digits", i, y, digits.class_names, "")
        for i, y in ((images, digits.labels), (digits.images, labels))
    ]
    assert len({digits.fingerprint, *(d.fingerprint for d in changed)}) == 3


@pytest.mark.parametrize("name", ["letters", "photos"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_foreign_sets_come_in_the_shape_asked_for(name, shape):
    foreign = data.load(name, shape=shape)
    assert foreign.shape == shape
    assert len(foreign) >= 256
    assert (foreign.labels == -1).all()
    assert 0.05 < float(foreign.images.std()) < 0.6  # pictures, not a constant


def test_no_letter_could_pass_for_a_digit_and_the_provenance_names_those_that_are_left():
    letters = data.load("letters", shape=(1, 8, 8))
    drawn = bundled.LETTERS
    assert not set(drawn) & set("BDGIOQSZabegijloqsyz")
    assert f"The letters {drawn} in 10 fonts" in letters.provenance
    assert len(letters) == 10 * len(drawn)


def test_foreign_sets_have_no_training_split():
    with pytest.raises(UserError, match="no train split"):
        data.load("letters", "train")


@pytest.mark.parametrize("name", ["digits", "cifar10", "mnist:0-7", "mine.npz"])
def test_a_split_of_another_name_is_refused_and_not_taken_for_the_training_split(name):
    with pytest.raises(UserError, match="no split named 'callibration'") as refusal:
        data.load(name, "callibration")  # type: ignore[arg-type]
    assert refusal.value.details["remedy"] == "did you mean calibration?"


def test_grey_and_colour_are_converted_and_sizes_resized():
    photos = data.load("photos", shape=(3, 16, 16))
    grey = photos.reshaped((1, 16, 16))
    red, green, blue = photos.images.unbind(1)
    assert torch.allclose(grey.images[:, 0], 0.299 * red + 0.587 * green + 0.114 * blue, atol=1e-6)
    small = photos.reshaped((3, 8, 8))
    assert torch.allclose(small.images.mean((1, 2, 3)), photos.images.mean((1, 2, 3)), atol=0.02)


def test_a_slice_keeps_sample_ids_and_fingerprint():
    digits = data.load("digits")
    part = digits.slice(10, 13)
    assert part.sample_ids.tolist() == [10, 11, 12]
    assert part.fingerprint == digits.fingerprint
    assert torch.equal(part.images, digits.images[10:13])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.full((2, 1, 4, 4), 2.0, np.float32), [0, 1], r"pixels must lie in \[0, 1\]"),
        (np.full((2, 1, 4, 4), np.nan, np.float32), [0, 1], r"pixels must lie in \[0, 1\]"),
        (np.zeros((2, 1, 4, 4), np.int64), [0, 1], "does not hold pictures"),
        (np.zeros((2, 4), np.float32), [0, 1], "does not hold pictures"),
        (np.zeros((2, 1, 4, 4), np.float32), [0], "numbers of labels and pictures differ"),
        (np.zeros((0, 1, 4, 4), np.float32), [], "has no pictures"),
        (np.zeros((2, 1, 4, 4), np.float32), [0, 2], "label is out of range"),
    ],
)
def test_what_is_no_data_set_is_refused_in_words(images, labels, message):
    with pytest.raises(UserError, match=message):
        data.make("x", images, np.asarray(labels), ["a", "b"], "")


def test_range_errors_of_rounding_are_forgiven():
    images = np.full((1, 1, 4, 4), 1 + 5e-7, np.float32)
    assert float(data.make("x", images, [0], ["a"], "").images.max()) == 1.0


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(UserError) as caught:
        data.load("digit")
    assert "digits" in str(caught.value)
    assert "imagefolder:PATH" in str(caught.value)


def test_a_folder_that_exists_is_no_misspelt_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    with pytest.raises(UserError) as refusal:
        data.load("pictures")
    assert refusal.value.details["remedy"] == "--data imagefolder:pictures"


def test_a_data_root_that_is_no_folder_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="not a folder"):
        data.load("mnist", root=tmp_path / "absent")


def test_npz_with_pictures_in_either_layout_and_its_splits(tmp_path: Path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 9, 9, 3), dtype=np.uint8)
    np.savez(
        tmp_path / "x.npz",
        images=images,
        labels=np.arange(6) % 3,
        train_images=images[:2],
        train_labels=[0, 1],
    )
    test = data.load(str(tmp_path / "x.npz"))
    assert test.shape == (3, 9, 9)
    assert torch.equal((test.images * 255).round().byte(), torch.from_numpy(images.transpose(0, 3, 1, 2)))
    assert len(data.load(str(tmp_path / "x.npz"), "train")) == 2
    with pytest.raises(UserError, match="no calibration split"):
        data.load(str(tmp_path / "x.npz"), "calibration")


def test_npz_that_lacks_an_array_or_is_none(tmp_path: Path):
    np.savez(tmp_path / "x.npz", pictures=np.zeros((1, 1, 4, 4)))
    (tmp_path / "y.npz").write_bytes(b"not a zip")
    for name in ("x.npz", "y.npz"):
        with pytest.raises(UserError, match="cannot read the data set"):
            data.load(str(tmp_path / name))


def test_what_is_not_there_is_said_to_be_absent(tmp_path: Path):
    for name in (f"{tmp_path}/absent.npz", f"{tmp_path}/absent.parquet", f"imagefolder:{tmp_path}/absent"):
        with pytest.raises(UserError, match="there is no such file or folder"):
            data.load(name)


@pytest.mark.parametrize("path", [".", "cat/.."])
def test_an_image_folder_is_named_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str):
    monkeypatch.chdir(folder_of(tmp_path / "pets", "cat", "dog"))
    assert data.load(f"imagefolder:{path}").name == "pets"


def test_an_image_folder_with_its_classes(tmp_path: Path):
    for label, grey in (("cat", 10), ("dog", 200)):
        (tmp_path / label).mkdir()
        for i in range(2):
            Image.new("L", (8, 8), grey + i).save(tmp_path / label / f"{i}.png")
    folder = data.load(f"imagefolder:{tmp_path}")
    assert folder.class_names == ("cat", "dog")
    assert folder.shape == (1, 8, 8)
    assert folder.labels.tolist() == [0, 0, 1, 1]
    assert float(folder.images[2].mean()) == pytest.approx(200 / 255)
    Image.new("L", (9, 8)).save(tmp_path / "dog" / "wide.png")
    with pytest.raises(UserError, match="one size"):
        data.load(f"imagefolder:{tmp_path}")


def folder_of(path: Path, *classes: str) -> Path:
    """A folder with a picture of each of these, SPLIT/CLASS or CLASS."""
    for k, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        Image.new("L", (8, 8), 10 * k).save(path / name / "0.png")
    return path


def test_splits_of_an_image_folder_number_the_classes_of_the_test_split(tmp_path: Path):
    splits = ("test/cat", "test/cow", "test/dog", "calibration/cow", "calibration/dog", "train/dog")
    path = folder_of(tmp_path, *splits)
    found = {split: data.load(f"imagefolder:{path}", split) for split in ("test", "calibration", "train")}
    assert {one.class_names for one in found.values()} == {("cat", "cow", "dog")}
    assert {split: one.labels.tolist() for split, one in found.items()} == {
        "test": [0, 1, 2], "calibration": [1, 2], "train": [2],
    }  # fmt: skip


def test_a_split_that_is_not_there_is_told_with_the_place_where_it_would_be(tmp_path: Path):
    path = folder_of(tmp_path, "test/cat", "test/dog")
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 1, 4, 4)), labels=np.array([0, 1]))
    named = {f"imagefolder:{path}": f"{path}/train/CLASS/", str(tmp_path / "x.npz"): "arrays train_images"}
    for name, where in named.items():
        with pytest.raises(UserError, match="no train split") as caught:
            data.load(name, "train")
        assert where in str(caught.value.details["expected"])


def test_a_grey_split_of_a_coloured_folder_has_the_test_splits_channels(tmp_path: Path):
    path = folder_of(tmp_path, "test/cat", "test/dog", "train/cat", "train/dog")
    assert data.load(f"imagefolder:{path}", "train").shape == (1, 8, 8)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(path / "test" / "dog" / "colour.png")
    train = data.load(f"imagefolder:{path}", "train")
    assert train.shape == data.load(f"imagefolder:{path}").shape == (3, 8, 8)
    assert train.images.unique(return_counts=True)[1].tolist() == [3 * 64, 3 * 64]


def test_a_grey_split_beside_a_coloured_parquet_has_its_channels(tmp_path: Path):
    _parquet(tmp_path / "x" / "test.parquet", 20, "PNG")
    encoded = io.BytesIO()
    Image.new("L", (32, 32), 7).save(encoded, "PNG")
    rows = {"img": [{"bytes": encoded.getvalue(), "path": None}] * 20, "label": [0] * 20}
    pq.write_table(pa.table(rows), tmp_path / "x" / "train.parquet")
    assert data.load(str(tmp_path / "x" / "test.parquet"), "train").shape == (3, 32, 32)


def test_a_class_that_the_test_split_lacks_is_refused_in_another(tmp_path: Path):
    path = folder_of(tmp_path, "test/cat", "test/dog", "calibration/cat", "calibration/Dog")
    with pytest.raises(UserError, match="classes that the test split lacks") as caught:
        data.load(f"imagefolder:{path}", "calibration")
    assert caught.value.details["got"] == "Dog"
    images, labels = np.zeros((3, 1, 4, 4)), np.array([0, 1, 2])
    arrays = {"calibration_images": images, "calibration_labels": labels + 1}
    np.savez(tmp_path / "x.npz", images=images, labels=labels, **arrays)
    with pytest.raises(UserError, match="classes that the test split lacks") as caught:
        data.load(str(tmp_path / "x.npz"), "calibration")
    assert caught.value.details["got"] == "3"


def test_a_split_of_an_npz_may_lack_classes(tmp_path: Path):
    images, labels = np.zeros((3, 1, 4, 4)), np.array([0, 1, 2])
    np.savez(
        tmp_path / "x.npz", images=images, labels=labels, train_images=images[:2], train_labels=labels[:2]
    )
    assert data.load(str(tmp_path / "x.npz"), "train").class_names == ("0", "1", "2")


@pytest.mark.parametrize("splits", [("train", "val"), ("calibration",), ("val",)])
def test_splits_are_not_taken_for_classes(tmp_path: Path, splits: tuple[str, ...]):
    path = folder_of(tmp_path, *(f"{split}/{name}" for split in splits for name in ("cat", "dog")))
    for split in ("test", "train"):
        with pytest.raises(UserError, match="none that is called test"):
            data.load(f"imagefolder:{path}", split)


def test_a_class_may_be_called_as_a_split(tmp_path: Path):
    path = folder_of(tmp_path, "tractor", "train")
    assert data.load(f"imagefolder:{path}").class_names == ("tractor", "train")
    with pytest.raises(UserError, match="no train split"):
        data.load(f"imagefolder:{path}", "train")


def _parquet(path: Path, n: int, kind: str) -> None:
    path.parent.mkdir(parents=True)
    encoded = []
    for i in range(n):
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), (i, 0, 255 - i)).save(buffer, kind)
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    pq.write_table(pa.table({"img": encoded, "label": [i % 10 for i in range(n)]}), path)


def test_cifar10_from_parquet_says_when_it_is_a_jpeg_copy(tmp_path: Path):
    _parquet(tmp_path / "cifar10" / "test.parquet", 20, "JPEG")
    copy = data.load("cifar10", root=tmp_path)
    assert copy.shape == (3, 32, 32)
    assert "JPEG copy" in copy.provenance
    assert "JPEG (quality 75)" in copy.provenance  # Pillow's default
    _parquet(tmp_path / "png" / "cifar10" / "test.parquet", 20, "PNG")
    exact = data.load("cifar10", root=tmp_path / "png")
    assert "JPEG" not in exact.provenance
    assert exact.images[3, :, 5, 5].mul(255).round().tolist() == [3, 0, 252]


def test_a_parquet_of_something_else_is_refused(tmp_path: Path):
    (tmp_path / "cifar10").mkdir()
    pq.write_table(pa.table({"x": [1]}), tmp_path / "cifar10" / "test.parquet")
    with pytest.raises(UserError, match="not a Hugging Face image parquet"):
        data.load("cifar10", root=tmp_path)


def test_real_mnist_and_cifar10_and_textures(data_root: Path):
    mnist = data.load("mnist", root=data_root)
    assert (len(mnist), mnist.shape) == (10_000, (1, 28, 28))
    calibration, train = (data.load("mnist", split, root=data_root) for split in ("calibration", "train"))
    assert (len(calibration), len(train)) == (6_000, 54_000)
    cifar = data.load("cifar10", root=data_root)
    assert (len(cifar), cifar.class_names[3]) == (8_000, "cat")
    assert "JPEG copy" in cifar.provenance
    assert data.load("textures", shape=(3, 32, 32), root=data_root).shape == (3, 32, 32)


def test_cifar10_in_torchvisions_own_format_is_preferred(tmp_path: Path, monkeypatch):
    from torchvision.datasets import CIFAR10

    _parquet(tmp_path / "cifar10" / "test.parquet", 20, "JPEG")
    _cifar_batches(tmp_path / "cifar-10-batches-py")
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *a: True)
    original = data.load("cifar10", root=tmp_path)
    assert len(original) == 4
    assert "JPEG" not in original.provenance
    assert (
        len(data.load("cifar10", "train", root=tmp_path))
        + len(data.load("cifar10", "calibration", root=tmp_path))
        == 20
    )


def _cifar_batches(folder: Path) -> None:
    import pickle

    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ["test_batch", *(f"data_batch_{k}" for k in range(1, 6))]:
        batch = {"data": rng.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [0, 1, 2, 3]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))


def test_svhn_in_torchvisions_format(tmp_path: Path, monkeypatch):
    from scipy.io import savemat

    (tmp_path / "svhn").mkdir()
    pictures = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)
    savemat(tmp_path / "svhn" / "test_32x32.mat", {"X": pictures, "y": np.array([[1], [2], [3], [9], [10]])})
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda *a: True)
    svhn = data.load("svhn", root=tmp_path)
    assert svhn.labels.tolist() == [1, 2, 3, 9, 0]
    assert torch.equal(
        (svhn.images[0] * 255).round().byte(), torch.from_numpy(pictures[..., 0].transpose(2, 0, 1))
    )


def test_data_that_cannot_be_had_says_where_it_belongs(tmp_path: Path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.svhn.download_url", offline)
    with pytest.raises(UserError) as caught:
        data.load("svhn", root=tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "could not be downloaded" in str(caught.value)
