"""What is a data set and what is none: the checks of ``make``."""

import numpy as np
import pytest
import torch

from robustgen import data
from robustgen.errors import UserError

PICTURES = np.zeros((4, 1, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("labels", "got"),
    [
        (np.array([0.7, 1.9, 0.0, 1.0]), "float64"),
        (np.array(list("abcd")), "<U1"),
        (np.array([True, False, True, True]), "bool"),
        (np.array(3), r"shape \(\)"),
        (np.zeros((4, 1), np.int64), r"shape \(4, 1\)"),
        (torch.zeros(4), "float32"),
    ],
)
def test_labels_are_integers_one_a_picture(labels, got):
    with pytest.raises(UserError, match=rf"labels must be integers(.|\n)*where: +here(.|\n)*got: .*{got}"):
        data.make("x", PICTURES, labels, ["a", "b"], "", where="here")


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        ([0, -1, 0, 1], ["a", "b"], "0 to 1"),
        ([-1, -1, -1, -1], ["a", "b"], "0 to 1"),
        ([0, -1, -1, -1], [], "-1, since there are no classes"),
        ([-2, -2, -2, -2], [], "-1, since"),
        (np.full(4, 2**63, np.uint64), ["a", "b"], "0 to 1"),
    ],
)
def test_only_foreign_pictures_are_without_label(labels, names, expected):
    with pytest.raises(UserError, match="label is out of range") as error:
        data.make("x", PICTURES, np.asarray(labels), names, "")
    assert f"expected: {expected}" in str(error.value)


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.uint64, ">i8"])
def test_every_integer_type_of_labels_gives_the_same_data_set(kind):
    labels = np.array([0, 1, 1, 0])
    wanted = data.make("x", PICTURES, labels, ["a", "b"], "")
    got = data.make("x", PICTURES.astype(">f4"), labels.astype(kind), ["a", "b"], "")
    assert got.fingerprint == wanted.fingerprint
    assert got.labels.dtype == torch.int64
    assert (data.make("x", PICTURES, np.full(4, -1), (), "").labels == -1).all()


@pytest.mark.parametrize(
    "pictures",
    [
        np.array(list("abcd")),
        np.array([None] * 4),
        PICTURES.astype(complex),
        np.array(1.0),
        np.zeros((4, 0, 8, 8), np.float32),
    ],
)
def test_what_holds_no_pictures_is_told(pictures):
    with pytest.raises(UserError, match="does not hold pictures"):
        data.make("x", pictures, np.zeros(4, np.int64), ["a"], "")


def test_pictures_that_are_no_numbers_are_counted_and_named():
    pictures = PICTURES.astype(np.float32).copy()
    pictures[3, 0, 2, 2] = np.nan
    with pytest.raises(UserError, match="NaN or infinite values in 1 of 4 pictures, counted from 0: 3"):
        data.make("x", pictures, np.zeros(4, np.int64), ["a"], "")


def test_a_missing_label_is_told_with_its_picture():
    with pytest.raises(UserError, match="nan at picture 2, counted from 0"):
        data.make("x", PICTURES, np.array([0, 1, np.nan, 0]), ["a", "b"], "")
