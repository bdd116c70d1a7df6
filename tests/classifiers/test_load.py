import hashlib
import shutil
import textwrap

import pytest
import torch
import yaml
from safetensors.torch import save_file

from robustgen import classifiers
from robustgen.classifiers import build, fingerprint_model, load, load_model
from robustgen.classifiers.base import Classifier, Denoiser
from robustgen.classifiers.softmax import Softmax
from robustgen.errors import UserError
from robustgen.registry import EntryPointModel, FileModel, ObjectModel, ZooModel, resolve

OPTIONS = {"num_classes": 10, "input_shape": [1, 8, 8], "width": 4, "blocks": [1], "pool": 2}
DIGITS = {"class_names": "0123456789", "input_shape": (1, 8, 8)}


def write_model(folder, tensors=None, **changes):
    """A folder of the zoo with an untrained network."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    tensors = build("resnet-softmax", OPTIONS, where="test").state_dict() if tensors is None else tensors
    save_file(tensors, folder / "weights.safetensors")
    digest = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    card = {"name": folder.name, "family": "softmax", "summary": "For tests.", "data": "digits"}
    card |= {"arch": "resnet-softmax", "options": OPTIONS, "weights": {"sha256": digest}}
    (folder / "card.yaml").write_text(yaml.safe_dump(card | changes))
    return folder


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """One model in a workspace of its own, which is the working directory."""
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    return write_model(tmp_path / "models" / "net-digits")


def message(error):
    return str(error.value)


def test_loaded_model_is_ready_to_be_judged(zoo):
    model = load(zoo)
    assert isinstance(model, Softmax)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    torch.manual_seed(0)
    x = torch.rand(3, 1, 8, 8)
    torch.manual_seed(0)
    twin = build("resnet-softmax", OPTIONS, where="test").eval()
    assert torch.equal(model(x), twin(x))
    assert torch.equal(load(zoo / "card.yaml")(x), twin(x))


def test_float16_weights_are_read_as_float32(zoo):
    tensors = {key: value.half() for key, value in load(zoo).state_dict().items()}
    model = load(write_model(zoo.parent / "half-digits", tensors))
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, tensors[key].float())


def test_absent_weights(zoo):
    (zoo / "weights.safetensors").unlink()
    with pytest.raises(UserError, match="are not there") as error:
        load(zoo)
    assert "robustgen train" in message(error)
    assert str(zoo / "weights.safetensors") in message(error)


def test_one_flipped_bit_is_found(zoo):
    path = zoo / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="not the weights that the card names") as error:
        load(zoo)
    assert hashlib.sha256(content).hexdigest() in message(error)


def test_corrupt_safetensors_under_a_right_hash(zoo):
    (zoo / "weights.safetensors").write_bytes(b"garbage" * 100)
    card = yaml.safe_load((zoo / "card.yaml").read_text())
    card["weights"]["sha256"] = hashlib.sha256(b"garbage" * 100).hexdigest()
    (zoo / "card.yaml").write_text(yaml.safe_dump(card))
    with pytest.raises(UserError, match="no safetensors file"):
        load(zoo)


@pytest.mark.parametrize("damage", ["shape", "missing", "unexpected"])
def test_weights_that_do_not_fit(zoo, damage):
    tensors = dict(load(zoo).state_dict())
    if damage == "shape":
        tensors["net.head.weight"] = torch.zeros(10, 3)
    elif damage == "missing":
        del tensors["net.head.weight"]
    else:
        tensors["net.head.extra"] = torch.zeros(1)
    folder = write_model(zoo.parent / "broken-digits", tensors)
    with pytest.raises(UserError, match="do not fit the architecture") as error:
        load(folder)
    wanted = {
        "shape": "(10, 3)",
        "missing": "got:      no such tensor",
        "unexpected": "expected: no such tensor",
    }
    assert wanted[damage] in message(error)
    assert "net.head." in message(error)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"arch": "resnet-softmx"}, "did you mean resnet-softmax"),
        ({"options": OPTIONS | {"widht": 3}}, "widht"),
        ({"options": OPTIONS | {"width": -1}}, "width=-1"),
        ({"name": "other"}, "must be that of its folder"),
        ({"wieghts": {}}, "did you mean weights"),
        ({"arch": "model.py:Net"}, "no such Python file"),
    ],
)
def test_wrong_cards(zoo, changes, text):
    with pytest.raises(UserError) as error:
        load(write_model(zoo, **changes))
    assert text in message(error)


def test_every_architecture_of_the_table_exists():
    for name in classifiers.ARCHITECTURES:
        sigma = {"sigma": 0.1} if name in ("jem", "gmmc") else {}
        options = {"num_classes": 10, "input_shape": [1, 8, 8]} | sigma
        assert isinstance(build(name, options, where="test"), Classifier | Denoiser), name


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
    assert "10 classes, pictures of shape (1, 8, 8)" in message(error)


def test_a_glob_of_two_models_is_refused_where_one_is_wanted(zoo):
    shutil.copytree(zoo, zoo.parent / "net2-digits")
    write_model(zoo.parent / "net2-digits")
    with pytest.raises(UserError, match="one model is wanted"):
        load_model("net*", **DIGITS)


def test_entry_points(monkeypatch):
    class Point:
        name, value, dist = "theirs", "package:net", None

        def load(self):
            raise ImportError("broken package")

    monkeypatch.setattr(classifiers, "entry_points", lambda **_: [Point()])
    with pytest.raises(UserError, match="another package") as error:
        load_model(EntryPointModel("theirs"), **DIGITS)
    assert "ImportError: broken package" in message(error)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    monkeypatch.setattr(Point, "load", lambda self: net)
    assert load_model(EntryPointModel("theirs"), **DIGITS).module is net


def test_fingerprints_follow_weights_options_and_code(zoo, tmp_path):
    ref = ZooModel("net-digits", zoo)
    first = fingerprint_model(ref)
    write_model(zoo, summary="Other words.")
    assert fingerprint_model(ref) == first
    write_model(zoo, options=OPTIONS | {"activation": "relu"})
    assert fingerprint_model(ref) != first
    write_model(zoo, {"w": torch.ones(3)})
    assert fingerprint_model(ref) != first
    path = tmp_path / "mine.py"
    path.write_text("net = 1")
    (mine,) = resolve(f"{path}:net")
    assert isinstance(mine, FileModel)
    before = fingerprint_model(mine)
    assert before == fingerprint_model(mine)
    path.write_text("net = 2")
    assert fingerprint_model(mine) != before
    assert fingerprint_model(FileModel("x", path, "other")) != fingerprint_model(mine)


def test_fingerprint_of_a_file_follows_what_it_imports_from_its_folder(tmp_path):
    (tmp_path / "beside_mine.py").write_text("value = 1")
    (tmp_path / "mine.py").write_text("import beside_mine\nnet = 1")
    (mine,) = resolve(f"{tmp_path / 'mine.py'}:net")
    before = fingerprint_model(mine)
    (tmp_path / "beside_mine.py").write_text("value = 2")
    assert fingerprint_model(mine) != before


class Scaled(torch.nn.Module):
    def __init__(self, scale, mean=(0.5,)):
        super().__init__()
        self.scale, self.mean = scale, mean
        self.generator = torch.Generator()

    def forward(self, x):
        return self.scale * (x - self.mean[0]).flatten(1)


def test_fingerprint_of_a_live_module_follows_what_was_set_by_hand():
    def fingerprint(*settings):
        return fingerprint_model(ObjectModel("live", torch.nn.Sequential(Scaled(*settings))))

    assert fingerprint(1.0) == fingerprint(1.0)
    assert fingerprint(1.0) != fingerprint(-1.0)
    assert fingerprint(1.0) != fingerprint(1.0, (0.4,))
