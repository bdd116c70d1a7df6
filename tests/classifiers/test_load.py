import shutil
import textwrap

import pytest
import torch
from untrained import DIGITS, write_model

import robustgen
from robustgen.classifiers import load_model, user
from robustgen.errors import UserError
from robustgen.registry import EntryPointModel


def test_model_py_beside_the_card(zoo):
    text = """
    from robustgen.classifiers.softmax import Softmax
    from neighbour import WIDTH

    class Mine(Softmax):
        def __init__(self, **options):
            super().__init__(**options | {"width": WIDTH})
    """
    (zoo / "model.py").write_text(textwrap.dedent(text))
    (zoo / "neighbour.py").write_text("WIDTH = 4")
    model = load_model("net-digits", **DIGITS)
    write_model(zoo, arch="model.py:Mine")
    mine = load_model("net-digits", **DIGITS)
    assert type(mine).__name__ == "Mine"
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(mine(x), model(x))


def test_model_of_other_data_is_refused(zoo):
    with pytest.raises(UserError, match="does not fit the data") as error:
        load_model("net-digits", class_names="0123456789", input_shape=(3, 32, 32))
    assert "10 classes, pictures of shape (1, 8, 8)" in str(error.value)


def test_a_glob_of_two_models_is_refused_where_one_is_wanted(zoo):
    shutil.copytree(zoo, zoo.parent / "net2-digits")
    write_model(zoo.parent / "net2-digits")
    with pytest.raises(UserError, match="matches several models"):
        load_model("net*", **DIGITS)


def test_a_glob_of_denoisers_alone_is_no_model():
    with pytest.raises(UserError, match="this pattern matches no classifier") as error:
        robustgen.load_model("denoiser-*")
    assert "denoiser-digits" in str(error.value)


def test_entry_points(monkeypatch):
    class Point:
        name, value, dist = "theirs", "package:net", None

        def load(self):
            raise ImportError("broken package")

    monkeypatch.setattr(user, "entry_points", lambda **_: [Point()])
    with pytest.raises(UserError, match="another package") as error:
        load_model(EntryPointModel("theirs"), **DIGITS)
    assert "ImportError: broken package" in str(error.value)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    monkeypatch.setattr(Point, "load", lambda self: net)
    assert load_model(EntryPointModel("theirs"), **DIGITS).module is net
