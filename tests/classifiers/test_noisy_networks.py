"""The parts of the noise-trained networks."""

import math

import pytest
import torch

from robustgen.classifiers.noisy_networks import EMBEDDING, NoiseEmbedding, NoisyBackbone, scale_of


def test_scale_is_the_mean_picture_and_the_deviation_around_it():
    images = torch.tensor([[0.0, 1.0], [0.5, 0.0]]).view(2, 1, 1, 2)
    mean, deviation = scale_of(images)
    assert mean.flatten().tolist() == [0.25, 0.5]
    assert float(deviation) == pytest.approx(math.sqrt((2 * 0.25**2 + 2 * 0.5**2) / 4))


def test_embedding_tells_levels_apart():
    embedding = NoiseEmbedding()(torch.tensor([0.01, 0.011, 1.0])).detach()
    assert embedding.shape == (3, EMBEDDING)
    assert float((embedding[0] - embedding[2]).norm()) > 3 * float((embedding[0] - embedding[1]).norm()) > 0


def test_energy_is_the_inner_product_of_features_and_picture():
    """With constant heads b at two scales, E = sum_s 4^s b_s sum(u_s) = (b_0 + b_1) sum(u)."""
    net = NoisyBackbone((1, 4, 4), 3, (4, 6), 1, energy=True).double()
    for head, bias in zip(net.to_score, (0.5, 2.0), strict=True):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.constant_(head.bias, bias)
    u = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    logits, energy = net(u, torch.tensor([0.1, 0.9], dtype=torch.float64))
    assert logits.shape == (2, 3)
    torch.testing.assert_close(energy, 2.5 * u.sum((1, 2, 3)))
    without = NoisyBackbone((1, 4, 4), 3, (4, 6), 1, energy=False)
    assert not without(torch.randn(2, 1, 4, 4), torch.tensor([0.1, 0.9]))[1].any()
