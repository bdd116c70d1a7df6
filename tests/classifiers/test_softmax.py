import pytest
import torch

from robustgen.classifiers.softmax import Softmax
from robustgen.errors import UnsupportedError
from robustgen.types import NoNoise


@pytest.fixture
def model():
    return Softmax(10, (1, 8, 8), width=4, blocks=(1,))


def test_it_offers_logits_and_nothing_else(model):
    assert model.supports == {"logits"}
    assert model.density is None
    assert model.noise == NoNoise()
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("call", ["log_joint", "log_prob"])
def test_it_has_no_density(model, call):
    with pytest.raises(UnsupportedError, match="Softmax has no log p"):
        getattr(model, call)(torch.rand(2, 1, 8, 8))


def test_it_has_no_denoiser(model):
    with pytest.raises(UnsupportedError, match="no denoiser"):
        model.denoise(torch.rand(2, 1, 8, 8), 0.1)
