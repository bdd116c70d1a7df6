"""Broken files of every kind that is read: one message that says what to do, or an answer that is right.

The files are made, not stored: benchmarks/malformed_files.py and malformed_tables.py are the corpus.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from benchmarks.malformed import judge, run
from benchmarks.malformed_files import CARD, NASTY, OPTIONS, PROTOCOL, RECIPE, Case, model_folder, weights
from robustgen import added, data, strict
from robustgen.classifiers import load
from robustgen.config import ModelCard, Protocol
from robustgen.data import Dataset
from robustgen.errors import UserError
from robustgen.plainyaml import read_yaml
from robustgen.store import RunStore
from robustgen.training.recipe import Recipe

FEW = settings(max_examples=40, deadline=None, derandomize=True, database=None)


@contextlib.contextmanager
def only_words():
    """A UserError that says all five things is let through; whatever else is raised fails the test."""
    try:
        yield
    except UserError as error:
        said = error
    else:
        return
    missing = [key for key, value in {"what": said.what, **said.details}.items() if value in (None, "")]
    assert not missing, f"{said}\nleaves out {missing}"


def test_a_hundred_broken_inputs_no_traceback_and_no_wrong_answer(tmp_path: Path):
    faults: list[str] = []
    result = run(99, 7, tmp_path, faults.append)
    assert faults == []
    assert result["refused"] + result["read_right"] == 99
    assert min(result["refused"], result["read_right"]) >= 10  # it is neither all refused nor all harmless


@pytest.mark.parametrize(
    ("read", "right", "outcome"),
    [
        (lambda: {}["x"], True, "traceback"),
        (lambda: 1, False, "wrong"),
        (lambda: 1, True, "read"),
        (lambda: strict.validate(Protocol, {}, where="x"), True, "refused"),
        (lambda: (_ for _ in ()).throw(UserError("it broke", where="x")), True, "words"),
    ],
)
def test_the_judge_sees_each_fault(read, right, outcome):
    def answer() -> object:
        found = read()
        return next(found) if outcome == "words" else found

    assert judge(Case("x", answer, lambda _: right)).outcome == outcome


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(NASTY)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)


@FEW
@given(st.sampled_from([(ModelCard, CARD), (Protocol, PROTOCOL), (Recipe, RECIPE)]), st.data())
def test_any_value_in_any_place_of_a_card_protocol_or_recipe(kind, chosen):
    model, sound = kind
    keys = chosen.draw(st.lists(st.sampled_from([*model.model_fields]), min_size=1, max_size=3))
    content = dict(sound) | {key: chosen.draw(JSON, label=key) for key in keys}
    with only_words():
        assert strict.validate(model, content, where="x.yaml").fingerprint()


@FEW
@given(st.text() | st.text(alphabet="ab:-[]{}&*!?|>'\"#%@\n \t0.", max_size=40) | st.binary())
def test_any_text_as_yaml(text):
    with tempfile.TemporaryDirectory() as folder, only_words():
        file = Path(folder) / "x.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        read_yaml(file)


def _read(kind: str, folder: Path, content: bytes) -> object:
    """Read bytes as a file of a kind."""
    if kind == "weights":
        place, card = model_folder(folder, content)
        (place / "card.yaml").write_text(json.dumps(card))
        return load(place)
    name = {"npz": "x.npz", "added": "x.npz", "tensors": "x.safetensors", "parquet": "cifar10/test.parquet",
            "images": "a/x.png", "run": "run.json"}[kind]  # fmt: skip
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    match kind:
        case "npz":
            return data.load(str(file))
        case "added" | "tensors":
            return added.read(file, data.load("digits"))
        case "parquet":
            return data.load("cifar10", root=folder)
        case "images":
            return data.load(f"imagefolder:{folder}")
    return RunStore.read(folder)


HEADS = [
    b"",
    b"PK\x03\x04",
    b"PAR1",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"\x93NUMPY",
    b"GIF89a",
    b"{}",
    b"BM",
]


@pytest.mark.parametrize("kind", ["weights", "npz", "added", "tensors", "parquet", "images", "run"])
@FEW
@given(st.sampled_from(HEADS), st.binary(max_size=60))
def test_any_bytes_as_any_file(kind: str, head: bytes, rest: bytes):
    with tempfile.TemporaryDirectory() as folder, only_words():
        _read(kind, Path(folder), head + rest)
        raise AssertionError("read as if it were sound")


DTYPES = st.one_of(
    arrays.integer_dtypes(), arrays.unsigned_integer_dtypes(), arrays.floating_dtypes(),
    arrays.boolean_dtypes(), arrays.complex_number_dtypes(), arrays.unicode_string_dtypes(max_len=2),
    arrays.datetime64_dtypes(),
)  # fmt: skip


@FEW
@given(
    arrays.arrays(DTYPES, arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=3)),
    arrays.arrays(DTYPES, arrays.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3)),
)
def test_any_shape_and_type_of_pictures_and_labels(images: np.ndarray, labels: np.ndarray):
    with only_words():
        _as_given(data.make("x", images, labels, ["a", "b"], "made", where="x.npz"), images, labels)


@FEW
@given(
    arrays.arrays(
        st.sampled_from(["u1", "f4", ">f4", "f8", "f2"]),
        (2, 1, 2, 2),
        elements={"min_value": 0, "max_value": 1},
    ),
    st.lists(st.integers(0, 1), min_size=2, max_size=2),
)
def test_sound_pictures_of_any_type_are_read_as_they_are(images: np.ndarray, labels: list[int]):
    _as_given(data.make("x", images, np.array(labels), ["a", "b"], "made"), images, np.array(labels))


def _as_given(found: Dataset, images: np.ndarray, labels: np.ndarray) -> None:
    said = images.astype(np.float64) / (255 if images.dtype == np.uint8 else 1)
    np.testing.assert_allclose(found.images.numpy(), said, atol=1e-6)
    assert found.labels.tolist() == labels.tolist()


def test_the_sound_files_are_read(tmp_path: Path):
    place, card = model_folder(tmp_path, weights())
    (place / "card.yaml").write_text(json.dumps(card))
    assert load(place).num_classes == OPTIONS["num_classes"]
    for kind, content in ((Protocol, PROTOCOL), (Recipe, RECIPE)):
        strict.validate(kind, content, where="x")
