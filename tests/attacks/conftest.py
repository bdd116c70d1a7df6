"""A trained net that attacks are tested on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustgen import data
from robustgen.classifiers.base import PlainClassifier
from robustgen.classifiers.fixed_batch import FixedBatch


@pytest.fixture(scope="session")
def trained() -> FixedBatch:
    """A small net on digits, frozen, at the fixed batch size 32."""
    digits = data.load("digits", "train")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.SiLU(), nn.Linear(48, 10))
        weights = list(net.parameters())
        # Plain gradient descent: importing torch.optim's compiler takes longer than this training.
        for _ in range(300):
            # Noise leaves a part of the pictures robust at the eps that the tests look at.
            x = digits.images + 0.2 * torch.randn(len(digits), 1, 8, 8)
            loss = nn.functional.cross_entropy(net(x), digits.labels)
            with torch.no_grad():
                for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                    weight -= 0.5 * gradient
    model = FixedBatch(PlainClassifier(net, 10, (1, 8, 8)), 32)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def digits() -> data.Dataset:
    return data.load("digits").slice(0, 128)
