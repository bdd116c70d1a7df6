"""Foreign sets: made for a familiar one, brought to its size and through its codec."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustgen import data
from robustgen.data import codec
from robustgen.data.codec import Jpeg
from robustgen.errors import UserError
from robustgen.metrics import ood


def coloured(
    n: int = 30, shape: tuple[int, int, int] = (3, 16, 16), jpeg: Jpeg | None = None
) -> data.Dataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
    made = data.make("mine", images, np.arange(n) % 3, ["a", "b", "c"], "Random.")
    return replace(made, images=jpeg(made.images) if jpeg else made.images, codec=jpeg)


@pytest.mark.parametrize("name", data.DERIVED)
def test_what_is_made_for_a_set_has_its_shape_and_no_labels(name: str) -> None:
    for familiar in (data.load("digits"), coloured()):
        found = data.load_foreign(name, familiar)
        assert found.raw is None
        made = found.matched
        assert made.shape == familiar.shape
        assert (made.labels == -1).all()
        assert (made.name, made.source) == (name, name)
        assert len(made) >= min(256, len(familiar))
        assert len(torch.unique(made.images, dim=0)) > 0.95 * len(made)
        assert made.fingerprint == data.load_foreign(name, familiar).matched.fingerprint


def test_interpolated_pairs_are_means_of_two_classes() -> None:
    digits = data.load("digits")
    made = data.load_foreign("interpolated", digits).matched
    for i in range(0, 400, 40):
        other = 2 * made.images[i] - digits.images[i]
        near = (digits.images - other).abs().amax((1, 2, 3)) < 0.005  # of 8 bits
        assert near.any()
        assert (digits.labels[near] != digits.labels[i]).all()


def test_turned_and_inverted_by_numpy() -> None:
    digits = data.load("digits")
    turned = data.load_foreign("turned", digits).matched.images[:20, 0].numpy()
    assert np.array_equal(turned, np.rot90(digits.images[:20, 0].numpy(), 1, (1, 2)))
    assert torch.equal(
        data.load_foreign("inverted", digits).matched.images + digits.images, torch.ones(400, 1, 8, 8)
    )


def test_noise_has_the_moments_that_it_says() -> None:
    familiar = coloured()
    uniform = data.load_foreign("uniform-noise", familiar).matched.images
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.002)
    assert float(uniform.std()) == pytest.approx(12**-0.5, abs=0.002)
    # far from the box, so that little is clipped
    narrow = data.make("n", 0.4 + 0.1 * familiar.images, familiar.labels, familiar.class_names, "")
    normal = data.load_foreign("gaussian-noise", narrow).matched.images
    for theirs, ours in zip(normal.unbind(1), narrow.images.unbind(1), strict=True):
        assert float(theirs.mean()) == pytest.approx(float(ours.mean()), abs=0.001)
        assert float(theirs.std()) == pytest.approx(float(ours.std()), rel=0.02)
    constant = data.load_foreign("constant", familiar).matched.images
    assert float(constant.std((2, 3)).max()) < 1e-6


def test_what_a_set_does_not_allow_is_refused_in_words() -> None:
    with pytest.raises(UserError, match="not square"):
        data.load_foreign("turned", coloured(shape=(3, 16, 18)))
    one = data.make("one", np.zeros((4, 1, 8, 8), np.uint8), np.zeros(4, int), ["a"], "")
    with pytest.raises(UserError, match="no pairs"):
        data.load_foreign("interpolated", one)
    with pytest.raises(UserError, match="derived from another data set"):
        data.load("turned")
    with pytest.raises(UserError, match="did you mean turned"):
        data.load_foreign("turnd", data.load("digits"))


def test_a_foreign_set_goes_through_the_codec_and_the_raw_one_stands_beside_it() -> None:
    familiar = coloured(jpeg=Jpeg(60))
    found = data.load_foreign("photos", familiar)
    assert found.raw is not None
    assert torch.equal(found.matched.images, Jpeg(60)(found.raw.images))
    assert "JPEG (quality 60, 4:2:0)" in found.matched.provenance
    assert found.matched.codec == familiar.codec
    assert found.raw.codec is None
    assert found.raw.fingerprint != found.matched.fingerprint


def test_what_came_through_the_same_codec_is_left_alone(tmp_path: Path) -> None:
    familiar = coloured(jpeg=Jpeg(60))
    for kind, quality in (("same", 60), ("other", 90)):
        folder = tmp_path / kind / "x"
        folder.mkdir(parents=True)
        for i, pixels in enumerate(codec.to_uint8(coloured(25).images)):
            Image.fromarray(pixels).save(folder / f"{i:02}.jpg", quality=quality, subsampling="4:2:0")
    same = data.load_foreign(f"imagefolder:{tmp_path / 'same'}", familiar)
    assert same.matched.codec == Jpeg(60)
    assert same.raw is None
    other = data.load_foreign(f"imagefolder:{tmp_path / 'other'}", familiar)
    assert other.raw is not None
    assert other.raw.codec == Jpeg(90)
    # resized, it is no longer what came out of that codec
    small = coloured(shape=(3, 8, 8), jpeg=Jpeg(60))
    assert data.load_foreign(f"imagefolder:{tmp_path / 'same'}", small).raw is not None


def test_the_first_of_a_foreign_folder_are_of_all_its_classes(tmp_path: Path) -> None:
    """A folder is read class by class, and a run may take the first n of it."""
    for shade, name in enumerate(("a", "b", "c")):
        (tmp_path / name).mkdir()
        for i in range(40):
            Image.fromarray(np.full((8, 8), 100 * shade, np.uint8)).save(tmp_path / name / f"{i:02}.png")
    source = f"imagefolder:{tmp_path}"
    found = data.load_foreign(source, data.load("digits")).matched
    first = (found.images[:30, 0, 0, 0] * 255).round().int().tolist()
    assert all(5 <= first.count(shade) <= 15 for shade in (0, 100, 200))
    again = data.load_foreign(source, data.load("digits")).matched
    assert (again.fingerprint, again.source) == (found.fingerprint, source)
    assert data.load(source).labels[:40].tolist() == [0] * 40


def test_sets_of_another_size_and_of_other_channels_are_brought_to_the_data(tmp_path: Path) -> None:
    np.savez(tmp_path / "wide.npz", images=np.full((25, 3, 20, 30), 51, np.uint8), labels=np.zeros(25, int))
    found = data.load_foreign(str(tmp_path / "wide.npz"), data.load("digits")).matched
    assert found.shape == (1, 8, 8)
    assert torch.allclose(found.images, torch.tensor(0.2), atol=1e-6)
    assert data.load_foreign("digits", coloured()).matched.shape == (3, 16, 16)


def test_what_shrinks_is_averaged_over_areas() -> None:
    familiar = coloured(shape=(3, 16, 16))
    half = familiar.reshaped((3, 8, 8)).images
    by_hand = familiar.images.numpy().reshape(30, 3, 8, 2, 8, 2).mean((3, 5))
    assert np.allclose(half, by_hand, atol=1e-6)


def test_the_codec_trap(data_root: Path) -> None:
    # one scalar, no model: the PNG textures differ from the JPEG copy by their fine chroma
    cifar = data.load("cifar10", root=data_root)
    assert cifar.codec == Jpeg(75, "4:2:0")
    textures = data.load_foreign("textures", cifar, data_root)
    assert textures.raw is not None
    own = -codec.chroma_detail(cifar.images[:1000]).numpy()
    raw, matched = (
        float(ood.detection(own, -codec.chroma_detail(part.images).numpy()).auroc)
        for part in (textures.raw, textures.matched)
    )
    assert 0.9 < raw < 0.96
    assert 0.45 < matched < 0.55
