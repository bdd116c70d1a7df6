import pytest
import torch

from robustgen.classifiers.quick import quick_copy
from robustgen.classifiers.softmax import ConvSoftmax, Softmax
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


def test_the_fast_net_is_the_same_model_over_other_layers():
    model = ConvSoftmax(10, (3, 16, 16), widths=(8, 8))
    model.train()(torch.rand(64, 3, 16, 16))  # batch-norm's statistics, which folding takes up
    model.eval()
    x = torch.rand(4, 3, 16, 16)
    assert model.supports == {"logits"}
    quick = quick_copy(model, x)
    assert quick is not None
    assert len([m for m in quick.modules() if isinstance(m, torch.nn.BatchNorm2d)]) < 3
    torch.testing.assert_close(quick(x), model(x), atol=1e-5, rtol=1e-4)
