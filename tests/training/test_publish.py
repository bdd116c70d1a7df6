import hashlib
import shutil
import sys

import pytest
import torch
import yaml
from recipes import TINY, tiny, write

from robustgen import classifiers, data
from robustgen.classifiers import build
from robustgen.errors import UserError
from robustgen.registry import ZooModel
from robustgen.training import publish
from robustgen.training.loop import Training, train
from robustgen.training.recipe import Recipe

CLAIM = {"protocol": "quick", "evaluation": "clean", "metric": "accuracy", "value": 0.9}
CLAIM |= {"ci_low": 0.8, "ci_high": 1.0, "n": 400}


def claim(folder, **changes):
    """Let a published card claim a figure."""
    card = yaml.safe_load((folder / "card.yaml").read_text())
    (folder / "card.yaml").write_text(yaml.safe_dump(card | {"claims": [CLAIM]} | changes))


def claims(folder):
    return yaml.safe_load((folder / "card.yaml").read_text())["claims"]


def test_claims_stay_only_with_their_weights(tmp_path):
    folder = train(write(tmp_path, tiny()), tmp_path / "tiny")
    claim(folder)
    train(write(tmp_path, tiny(summary="Other words.")), folder)
    again = yaml.safe_load((folder / "card.yaml").read_text())
    assert again["summary"] == "Other words."
    assert again["claims"][0]["value"] == 0.9
    train(write(tmp_path, tiny(seed=1)), folder, fresh=True)
    assert claims(folder) == []


@pytest.mark.parametrize("change", ["arch", "data", "name", "unreadable"])
def test_claims_of_equal_weights_go_with_another_model_or_other_data(tmp_path, change):
    folder = train(write(tmp_path, tiny()), tmp_path / "tiny")
    claim(folder, **{"data": {"data": "mnist"}, "name": {"name": "other"}}.get(change, {}))
    if change == "unreadable":
        (folder / "card.yaml").write_text("claims: [")
    train(write(tmp_path, tiny(arch="mirrored-softmax") if change == "arch" else tiny()), folder, fresh=True)
    assert claims(folder) == []


def test_the_model_of_another_recipe_is_replaced_only_if_asked_for(tmp_path):
    folder = train(write(tmp_path, tiny(steps=1)), tmp_path / "tiny")
    before = (folder / "weights.safetensors").read_bytes()
    with pytest.raises(UserError, match="trained otherwise") as refusal:
        train(write(tmp_path, tiny(steps=1, seed=1)), folder)
    assert refusal.value.details["got"] == "seed: 0 -> 1"
    assert (folder / "weights.safetensors").read_bytes() == before
    train(write(tmp_path, tiny(steps=1, seed=1)), folder, fresh=True)
    assert (folder / "weights.safetensors").read_bytes() != before


SHIFTED = """
from robustgen.classifiers.softmax import Softmax

class Mine(Softmax):
    def logits(self, x, sigma=None):
        return self.net(x) + (0 if self.training else %d)
"""


def test_claims_of_equal_weights_go_with_other_code(tmp_path):
    path = write(tmp_path / "source", tiny(arch="model.py:Mine"))
    (path.parent / "model.py").write_text(SHIFTED % 0)
    folder = train(path, tmp_path / "mine")
    claim(folder)
    train(path, folder)
    assert claims(folder) == [CLAIM | {"variant": "", "published": ""}]
    weights = (folder / "weights.safetensors").read_bytes()
    (path.parent / "model.py").write_text(SHIFTED % 1)
    with pytest.raises(UserError, match="trained otherwise") as refusal:
        train(path, folder)
    assert refusal.value.details["got"] == "another model.py"
    train(path, folder, fresh=True)
    assert (folder / "weights.safetensors").read_bytes() == weights
    assert claims(folder) == []


@pytest.mark.parametrize("place", ["elsewhere", "in place"])
def test_an_edit_during_the_training_is_not_published_as_trained(tmp_path, monkeypatch, place):
    path = write(tmp_path / "source", tiny(arch="model.py:Mine"))
    code = path.parent / "model.py"
    code.write_text("from made_of import Mine\n")
    beside = path.parent / "made_of.py"
    beside.write_text(SHIFTED % 0)
    trained = {file.name: file.read_bytes() for file in (path, code, beside)}
    finish = Training.finish

    def edit(self):
        finish(self)
        for file in (path, code, beside):
            file.write_text("raise ImportError('half written')")

    monkeypatch.setattr(Training, "finish", edit)
    monkeypatch.delitem(sys.modules, "made_of", raising=False)
    folder = train(path, path.parent if place == "in place" else tmp_path / "mine")
    assert {name: (folder / name).read_bytes() for name in trained} == trained
    kept = sorted(file.name for file in folder.glob("*.edited"))
    assert kept == ([f"{name}.edited" for name in sorted(trained)] if place == "in place" else [])


def test_architecture_of_a_users_own_file(tmp_path):
    source = tmp_path / "source"
    path = write(source, tiny(arch="model.py:Mine"))
    (source / "model.py").write_text("from robustgen.classifiers.softmax import Softmax as Mine\n")
    folder = train(path, tmp_path / "mine")
    assert (folder / "model.py").read_text() == (source / "model.py").read_text()
    assert classifiers.load(folder).num_classes == 10


def test_what_own_code_imports_from_its_folder_is_published_with_it(tmp_path, cache, monkeypatch):
    source = tmp_path / "source"
    path = write(source, tiny(arch="model.py:Mine"))
    (source / "model.py").write_text("from layers_of_mine.net import Mine\n")
    (source / "layers_of_mine").mkdir()
    net = "from robustgen.classifiers.softmax import Softmax as Mine\n"
    (source / "layers_of_mine" / "net.py").write_text(net)
    folder = train(path, tmp_path / "mine")
    assert (folder / "layers_of_mine" / "net.py").read_text() == net
    # another process, which finds what lies beside the published model.py
    monkeypatch.delitem(sys.modules, "layers_of_mine")
    monkeypatch.delitem(sys.modules, "layers_of_mine.net")
    shutil.rmtree(source / "layers_of_mine")
    assert classifiers.load(folder).num_classes == 10
    before = classifiers.fingerprint_model(ZooModel("mine", folder))
    (folder / "layers_of_mine" / "net.py").write_text(f"{net}# changed\n")
    assert classifiers.fingerprint_model(ZooModel("mine", folder)) != before


PLAIN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, input_shape):
        super().__init__()
        self.inner, self.again = nn.Linear(64, 64), nn.Linear(64, 64)
        self.again.weight = self.inner.weight
        self.head = nn.Linear(64, num_classes)

    def forward(self, x):
        return self.head(self.again(self.inner(x.flatten(1)).relu()).relu())
"""


def test_plain_module_with_tied_weights_is_trained_and_loads_by_its_card(tmp_path):
    recipe = tiny(arch="model.py:Net", options={}, steps=100, ema=0.9)
    path = write(tmp_path / "source", recipe)
    (path.parent / "model.py").write_text(PLAIN)
    folder = train(path, tmp_path / "plain")
    net = classifiers.load(folder)
    assert {"inner.weight", "again.weight", "head.bias"} < net.state_dict().keys()
    assert net.again.weight is net.inner.weight
    digits = data.load("digits", "train")
    assert float((net(digits.images).argmax(1) == digits.labels).float().mean()) > 0.7
    with pytest.raises(UserError, match="has no log p"):
        train(write(path.parent, recipe | {"objective": {"kind": "sgld"}}), tmp_path / "joint")


def test_published_folder_loads_as_the_model_that_was_given(tmp_path):
    options = TINY | {"num_classes": 10, "input_shape": [1, 8, 8]}
    model = build("resnet-softmax", options, where="test").eval()
    path, folder = write(tmp_path / "source", tiny(tried=["nothing"])), tmp_path / "my-tiny"
    card = publish.draft_card(Recipe(**tiny(tried=["nothing"])), folder)
    files = {"recipe.yaml": path.read_bytes()}
    publish.publish(model, card | {"options": options}, folder, files)
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(classifiers.load(folder)(x), model(x))
    assert sorted(p.name for p in folder.iterdir()) == ["card.yaml", "recipe.yaml", "weights.safetensors"]
    written = yaml.safe_load((folder / "card.yaml").read_text())
    assert (written["name"], written["tried"], written["claims"]) == ("my-tiny", ["nothing"], [])
    digest = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    assert written["weights"]["sha256"] == digest


MASKED = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, input_shape):
        super().__init__()
        self.head = nn.Linear(8, num_classes)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(8))

    def forward(self, x):
        rows = nn.functional.scaled_dot_product_attention(x[:, 0], x[:, 0], x[:, 0], attn_mask=self.mask)
        return self.head(rows.mean(1))
"""


def test_a_mask_of_infinities_is_no_divergence_and_no_damage(tmp_path):
    path = write(tmp_path / "source", tiny(arch="model.py:Net", options={}))
    (path.parent / "model.py").write_text(MASKED)
    assert classifiers.load(train(path, tmp_path / "masked")).mask.isinf().any()


def test_two_calls_of_the_network_stand_on_the_card(tmp_path, cache):
    folder = train(write(tmp_path / "source", tiny(arch="mirrored-softmax")), tmp_path / "mirrored")
    assert yaml.safe_load((folder / "card.yaml").read_text())["calls"] == 2


def test_weights_that_float16_cannot_hold_are_refused_and_kept(tmp_path, cache):
    source = tmp_path / "source"
    path = write(source, tiny(arch="model.py:Large", storage="float16"))
    code = """
import torch
from robustgen.classifiers.softmax import Softmax


class Large(Softmax):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.register_buffer("large", torch.tensor([1.0, 70_000.0]))
"""
    (source / "model.py").write_text(code)
    with pytest.raises(UserError, match="float16 cannot hold") as caught:
        train(path, tmp_path / "large")
    assert caught.value.details["got"] == "70000 in large"
    assert not (tmp_path / "large" / "card.yaml").exists()
    write(source, tiny(arch="model.py:Large"))
    assert float(classifiers.load(train(path, tmp_path / "large")).large[1]) == 70_000
