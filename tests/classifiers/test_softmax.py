import pytest
import torch

from robustgen.classifiers.softmax import MirroredSoftmax, Softmax
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


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 10)])
def test_mirrored_reads_both_views_and_cannot_tell_them_apart(shape):
    model = MirroredSoftmax(10, shape, width=4, blocks=(1,), pool=2).eval()
    x = torch.rand(5, *shape)
    mirrored = x.flip(3)
    torch.testing.assert_close(model.logits(x), model.logits(mirrored))
    torch.testing.assert_close(model.logits(x), (model.net(x) + model.net(mirrored)) / 2)
    assert not torch.allclose(model.net(x), model.net(mirrored))


def test_mirrored_trains_on_one_view():
    model = MirroredSoftmax(10, (1, 8, 8), width=4, blocks=(1,), pool=2).train()
    x = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(model.logits(x), model.net(x))
