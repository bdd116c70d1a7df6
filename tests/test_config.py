"""Protocols and cards: settings by data set, and names that lead nowhere else."""

import pytest

from robustgen import strict
from robustgen.config import ModelCard, Protocol
from robustgen.errors import UserError

MINIMAL = {
    "name": "p",
    "version": 1,
    "summary": "s",
    "data": {"digits": {"eps": {"linf": "8/255"}}},
    "evaluations": [{"kind": "clean"}],
}
CARD = {"name": "m", "family": "f", "summary": "s", "data": "digits", "arch": "jem"}


def test_settings_fall_back_to_any_and_else_say_what_there_is():
    protocol = Protocol.model_validate(MINIMAL)
    with pytest.raises(UserError, match="no settings for the data set 'svhn'"):
        protocol.settings("svhn")
    with_any = Protocol.model_validate(MINIMAL | {"data": {"any": {}}})
    assert with_any.settings("svhn").eps == {}


@pytest.mark.parametrize("key", ["sigmas", "sweep"])
@pytest.mark.parametrize("again", [0.4, "2/5", 0.40000001])
def test_a_noise_level_stands_once(key, again):
    content = MINIMAL | {"data": {"digits": {key: [0.4, 0.8, again]}}}
    with pytest.raises(UserError, match="each level once") as caught:
        strict.validate(Protocol, content, where="p.yaml")
    assert f"data.digits.{key}" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../m"}, {"name": "a/b"}, {"name": ".."}, {"name": "a\x00"}, {"name": "a" * 300},
        {"weights": {"file": "../../x.safetensors", "sha256": "0" * 64}},
        {"weights": {"file": "/etc/passwd", "sha256": "0" * 64}},
        {"arch": "../evil.py:Net"}, {"arch": "/tmp/evil.py:Net"}, {"arch": "model.py:a.b"},
        {"arch": "os:system"},
        {"recipe": "../recipe.yaml"}, {"over": "../denoiser"}, {"options": {1: 2}},
    ],
)  # fmt: skip
def test_a_card_names_nothing_outside_its_folder(change):
    strict.validate(ModelCard, CARD, where="card.yaml")
    with pytest.raises(UserError) as caught:
        strict.validate(ModelCard, CARD | change, where="card.yaml")
    assert all(caught.value.details[key] is not None for key in ("where", "expected", "got", "remedy"))
