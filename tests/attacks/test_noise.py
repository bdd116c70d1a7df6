"""Random noise: where it lies, how it is spread, and that it belongs to the sample."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor

from robustgen.attacks.noise import RandomNoise
from robustgen.classifiers.base import Classifier
from robustgen.draws import Draws
from robustgen.errors import UnsupportedError, UserError
from robustgen.threat import ThreatModel


class Silent(Classifier):
    """A model that must not be asked."""


def noise(norm: str, eps: float, ids: Tensor, x: Tensor | None = None) -> Tensor:
    """The perturbation of grey pictures."""
    x = torch.full((len(ids), 1, 8, 8), 0.5) if x is None else x
    attack = RandomNoise(ThreatModel(norm, eps))  # type: ignore[arg-type]
    return attack(Silent(), x, torch.zeros(len(ids)).long(), Draws(0, "noise", ids)).images - x


def test_is_uniform_in_the_linf_ball() -> None:
    delta = noise("linf", 0.1, torch.arange(64))
    assert delta.abs().max() <= 0.1 + 1e-6
    assert stats.kstest(delta.flatten(), stats.uniform(-0.1, 0.2).cdf).pvalue > 0.01


def test_is_uniform_on_the_l2_sphere() -> None:
    delta = noise("l2", 0.4, torch.arange(4096)).flatten(1)
    assert torch.allclose(delta.norm(dim=1), torch.tensor(0.4), atol=1e-6)
    # for any unit vector v and a uniform point u of the sphere in d = 64: (1 + u v) / 2 ~ Beta(31.5, 31.5)
    along_the_diagonal = (1 + delta.double().sum(1) / 8 / 0.4) / 2
    assert stats.kstest(along_the_diagonal, stats.beta(31.5, 31.5).cdf).pvalue > 0.01


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_belongs_to_the_sample(norm: str) -> None:
    whole = noise(norm, 0.1, torch.arange(8))
    assert torch.equal(noise(norm, 0.1, torch.tensor([5, 2])), whole[[5, 2]])
    assert not torch.equal(whole[0], whole[1])


def test_stays_in_the_box() -> None:
    black = torch.zeros(4, 1, 8, 8)
    delta = noise("linf", 0.1, torch.arange(4), black)
    assert delta.min() == 0
    assert (delta == 0).float().mean() == pytest.approx(0.5, abs=0.1)


def test_refuses_l1_and_options() -> None:
    with pytest.raises(UnsupportedError, match="L1"):
        RandomNoise(ThreatModel("l1", 1.0))
    with pytest.raises(UserError, match="noise"):
        RandomNoise(ThreatModel("l2", 1.0), steps=3)
