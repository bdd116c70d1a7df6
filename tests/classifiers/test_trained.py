import hashlib
import math

import pytest
import torch
import yaml
from untrained import OPTIONS, write_model

from robustgen.classifiers import build, load, trained
from robustgen.classifiers.base import Classifier, Denoiser
from robustgen.classifiers.softmax import Softmax
from robustgen.errors import UserError


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


def test_a_slip_in_an_option_is_what_was_got_and_not_what_was_expected():
    with pytest.raises(UserError, match="does not take these options") as error:
        build("resnet-softmax", {"wdith": 8} | OPTIONS, where="test")
    assert "wdith" not in str(error.value.details["expected"])
    assert "width" in str(error.value.details["expected"])
    assert "wdith=8" in str(error.value.details["got"])


def test_a_layer_that_there_is_not_is_told_with_its_place():
    with pytest.raises(UserError, match="unknown norm of a network") as error:
        build("resnet-softmax", {"norm": "bach"} | OPTIONS, where="recipe.yaml")
    assert error.value.details["where"] == "recipe.yaml"


def test_float16_weights_are_read_as_float32(zoo):
    tensors = {key: value.half() for key, value in load(zoo).state_dict().items()}
    model = load(write_model(zoo.parent / "half-digits", tensors))
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, tensors[key].float())


def test_absent_weights(zoo):
    (zoo / "weights.safetensors").unlink()
    with pytest.raises(UserError, match="are missing") as error:
        load(zoo)
    assert "robustgen train" in str(error.value)
    assert str(zoo / "weights.safetensors") in str(error.value)


def test_one_flipped_bit_is_found(zoo):
    path = zoo / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="not the weights that the card names") as error:
        load(zoo)
    assert hashlib.sha256(content).hexdigest() in str(error.value)


def test_corrupt_safetensors_under_a_right_hash(zoo):
    (zoo / "weights.safetensors").write_bytes(b"garbage" * 100)
    card = yaml.safe_load((zoo / "card.yaml").read_text())
    card["weights"]["sha256"] = hashlib.sha256(b"garbage" * 100).hexdigest()
    (zoo / "card.yaml").write_text(yaml.safe_dump(card))
    with pytest.raises(UserError, match="not a safetensors file"):
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
    assert wanted[damage] in str(error.value)
    assert "net.head." in str(error.value)


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
    assert text in str(error.value)


@pytest.mark.parametrize("arch", ["cdn", "egc", "noisy-softmax", "denoiser", "shared-denoiser"])
@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-0.1, 1.0), (1.0, 1.0), (1.0, 0.5), (0.1, math.inf), (math.nan, 1.0)]
)
def test_noise_levels_out_of_order_are_refused(arch, low, high):
    options = {"num_classes": 10, "input_shape": [1, 8, 8], "low": low, "high": high}
    with pytest.raises(UserError, match="not a range of noise levels to train on") as error:
        build(arch, options, where="recipe.yaml")
    assert error.value.details["where"] == "recipe.yaml"
    assert error.value.details["remedy"] == "mend the options"


@pytest.mark.parametrize("arch", ["jem", "gmmc"])
@pytest.mark.parametrize("sigma", [-0.1, float("inf"), float("nan")])
def test_a_sigma_that_is_no_level_is_refused(arch, sigma):
    options = {"num_classes": 10, "input_shape": [1, 8, 8], "sigma": sigma}
    with pytest.raises(UserError, match="not a noise level to train on"):
        build(arch, options, where="recipe.yaml")


def test_every_architecture_of_the_table_exists():
    for name in trained.ARCHITECTURES:
        sigma = {"sigma": 0.1} if name in ("jem", "gmmc") else {}
        options = {"num_classes": 10, "input_shape": [1, 8, 8]} | sigma
        assert isinstance(build(name, options, where="test"), Classifier | Denoiser), name
