import pytest
import torch

from robustgen.classifiers.jem import JEM
from robustgen.errors import UnsupportedError
from robustgen.types import FixedNoise


@pytest.fixture
def model():
    torch.manual_seed(0)
    return JEM(10, (1, 8, 8), sigma=0.05, width=4, blocks=(1,), pool=2)


def test_logits_are_the_joint_and_its_sum_the_density(model):
    x = torch.rand(3, 1, 8, 8)
    assert model.supports == {"logits", "log_joint", "log_prob"}
    assert model.density == "unnormalised"
    assert model.noise == FixedNoise(0.05)
    assert torch.equal(model.logits(x), model.log_joint(x))
    torch.testing.assert_close(model.log_prob(x), model.log_joint(x).exp().sum(1).log())


def test_one_noise_level_is_no_denoiser(model):
    with pytest.raises(UnsupportedError, match="no denoiser"):
        model.denoise(torch.rand(2, 1, 8, 8), 0.05)
