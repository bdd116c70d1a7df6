"""Models from a file of the user."""

import os
import textwrap

import pytest
import torch

from robustgen.classifiers import build, load_model
from robustgen.classifiers.base import PlainClassifier
from robustgen.classifiers.user import import_file, local_imports
from robustgen.errors import UserError

DIGITS = {"class_names": "0123456789", "input_shape": (1, 8, 8)}


def message(error):
    return str(error.value)


def write_file(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(text))
    return path


@pytest.mark.parametrize("name", ["INSTANCE", "Net", "make"])
def test_files_of_a_user(tmp_path, name):
    path = write_file(
        tmp_path,
        """
        import torch

        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.dropout = torch.nn.Dropout(0.5)
                self.linear = torch.nn.Linear(64, 10)

            def forward(self, x):
                return self.linear(self.dropout(x.flatten(1)))

        INSTANCE = Net()

        def make():
            return Net()
        """,
    )
    model = load_model(f"{path}:{name}", **DIGITS)
    assert isinstance(model, PlainClassifier)
    assert model.supports == {"logits"}
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(model(x), model(x))
    assert not any(p.requires_grad for p in model.parameters())


def test_two_files_of_one_name_do_not_mix(tmp_path):
    for width, folder in ((1, "a"), (2, "b")):
        (tmp_path / folder).mkdir()
        text = f"import torch\nnet = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, {width}))"
        (tmp_path / folder / "mine.py").write_text(text)
        model = load_model(
            f"{tmp_path / folder / 'mine.py'}:net", class_names="ab"[:width], input_shape=(1, 8, 8)
        )
        assert model(torch.rand(1, 1, 8, 8)).shape == (1, width)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("def net(:", ["cannot be imported", "line 1", "SyntaxError"]),
        ("import torch\nimport no_such_package", ["line 2", "No module named 'no_such_package'"]),
        ("from .layers import Net", ["part of a package", "line 1", "entry point"]),
        ("def net():\n    return 1 / 0", ["cannot be made", ":net, line 2", "ZeroDivisionError"]),
        ("def nett():\n    return 1", ["no model named 'net'", "did you mean nett"]),
        ("import sys\nsys.exit(0)", ["cannot be imported", "line 2", "SystemExit"]),
        ("def net():\n    raise SystemExit(2)", ["cannot be made", ":net, line 2", "SystemExit"]),
        ("net = 3", ["this is not a model", "int"]),
        ("def net():\n    return 3", ["this is not a model", "int"]),
        ("import torch\nnet = torch.nn.Linear(9, 10)", ["fails on a batch", "(2, 1, 8, 8)", "RuntimeError"]),
        ("import torch\nnet = torch.nn.Flatten()", ["does not return logits", "(2, 10)", "(2, 64)"]),
    ],
)
def test_mistakes_in_a_users_file_are_told_without_traceback(tmp_path, text, parts):
    path = write_file(tmp_path, text)
    with pytest.raises(UserError) as error:
        load_model(f"{path}:net", **DIGITS)
    for part in parts:
        assert part in message(error)
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__ or error.value.__context__ is None
    assert "Traceback" not in message(error)


def test_what_a_file_imports_is_not_offered_as_its_model(tmp_path):
    path = write_file(tmp_path, "from torch.nn import Flatten, Linear\nmade = Linear(2, 2)\nclass Net: pass")
    with pytest.raises(UserError) as error:
        import_file(path, "nothing")
    assert error.value.details["expected"] == "one of: Net, made"


def test_labels_from_1_are_guessed_where_the_model_has_one_class_less(tmp_path):
    path = write_file(
        tmp_path, "import torch\nnet = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 9))"
    )
    with pytest.raises(UserError, match="from 1 to 9, number them from 0"):
        load_model(f"{path}:net", **DIGITS)


def test_edited_file_is_imported_anew_and_an_equal_one_is_not(tmp_path):
    path = write_file(tmp_path, "class Net:\n    value = 1\n")
    before, stamp = import_file(path, "Net"), path.stat()
    assert import_file(path, "Net") is before
    write_file(tmp_path, "class Net:\n    value = 2\n")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # by size and time nothing has changed
    assert import_file(path, "Net").value == 2
    assert before.value == 1


def test_neighbours_are_what_a_file_imports_from_its_folder_and_what_that_imports(tmp_path):
    package = tmp_path / "parts_of_mine"
    package.mkdir()
    for name, text in {
        "__init__.py": "",
        "net.py": "from torch import nn\nfrom parts_of_mine import deep\nclass Net(nn.Module):\n    pass\n",
        "deep.py": "import json\n",
        "unused.py": "",
    }.items():
        (package / name).write_text(text)
    path = write_file(tmp_path, "import torch\nimport robustgen\nfrom parts_of_mine.net import Net\n")
    assert local_imports(path) == [package / "__init__.py", package / "deep.py", package / "net.py"]


def test_a_file_that_only_gives_a_number_is_a_neighbour_too(tmp_path):
    (tmp_path / "numbers_of_mine").mkdir()
    (tmp_path / "numbers_of_mine" / "width.py").write_text("from . import more\nWIDTH = more.WIDTH\n")
    (tmp_path / "numbers_of_mine" / "more.py").write_text("WIDTH = 4\n")
    path = write_file(
        tmp_path,
        "from numbers_of_mine.width import WIDTH\ntry:\n    from . import x\nexcept ImportError:\n    pass\n",
    )
    assert [file.name for file in local_imports(path)] == ["more.py", "width.py"]


def test_two_files_that_would_be_imported_under_one_name_are_refused(tmp_path):
    for folder, width in (("one", 1), ("two", 2), ("copy", 1)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "width_of_mine.py").write_text(f"WIDTH = {width}\n")
    one, two, copy = (
        write_file(tmp_path / folder, "from width_of_mine import WIDTH\n")
        for folder in ("one", "two", "copy")
    )
    assert import_file(one, "WIDTH") == import_file(copy, "WIDTH") == 1
    for _ in range(2):
        with pytest.raises(UserError, match="two files are imported as 'width_of_mine'") as caught:
            import_file(two, "WIDTH")
        assert caught.value.details["got"] == str(tmp_path / "one" / "width_of_mine.py")


def test_file_that_failed_can_be_mended_in_the_same_process(tmp_path):
    path = write_file(tmp_path, "net = missing")
    for _ in range(2):
        with pytest.raises(UserError, match="line 1"):
            import_file(path, "net")
    assert import_file(write_file(tmp_path, "net = 3"), "net") == 3


def test_options_that_a_users_architecture_refuses_are_named(tmp_path):
    write_file(tmp_path, "import torch\ndef make(width):\n    return torch.nn.Linear(width, 10)")
    with pytest.raises(UserError, match="width=-1") as error:
        build("mine.py:make", {"width": -1}, where="card.yaml", folder=tmp_path)
    assert "mine.py:make, line 3" in message(error)


@pytest.mark.parametrize("change", ["sub_(0.5)", "mul_(0.5).add_(0.25)"])  # the latter leaves 0.5 as it is
def test_classifier_that_writes_into_its_pictures_is_refused(tmp_path, change):
    text = CLASSIFIER.format(attributes="self.num_classes, self.input_shape = 10, (1, 8, 8)")
    path = write_file(tmp_path, text.replace("return x.", f"return x.{change}."))
    with pytest.raises(UserError, match="changes its input in place") as error:
        load_model(f"{path}:Net", **DIGITS)
    assert "x = x - mean" in message(error)


CLASSIFIER = """
    import torch
    from robustgen.classifiers.base import Classifier

    class Net(Classifier):
        def __init__(self):
            super().__init__()
            {attributes}

        def logits(self, x, sigma=None):
            return x.flatten(1)[:, :10]
"""


@pytest.mark.parametrize(
    ("attributes", "parts"),
    [
        ("self.num_classes = 10", ["does not say its input_shape", "Net.input_shape", "(1, 28, 28)"]),
        ("self.input_shape = (1, 8, 8)", ["does not say its num_classes", "such as 10", "no such attribute"]),
        ("self.num_classes, self.input_shape = 10, 8", ["its input_shape", "got:      8"]),
        ("self.num_classes, self.input_shape = '10', (1, 8, 8)", ["its num_classes", "got:      '10'"]),
    ],
)
def test_classifier_without_its_attributes_is_told_which(tmp_path, attributes, parts):
    path = write_file(tmp_path, CLASSIFIER.format(attributes=attributes))
    with pytest.raises(UserError) as error:
        load_model(f"{path}:Net", **DIGITS)
    for part in parts:
        assert part in message(error)


def test_classifier_with_its_attributes_is_taken_as_it_is(tmp_path):
    path = write_file(
        tmp_path, CLASSIFIER.format(attributes="self.num_classes, self.input_shape = 10, [1, 8, 8]")
    )
    assert load_model(f"{path}:Net", **DIGITS)(torch.rand(2, 1, 8, 8)).shape == (2, 10)
