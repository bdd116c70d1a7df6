"""GMMC's objective in its three modes: discriminative, generative, and both in turn (Yang et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from robustgen.classifiers.gmmc import GMMC
from robustgen.errors import UserError
from robustgen.training import accuracy
from robustgen.training.recipe import GmmcSpec
from robustgen.training.sgld import ChainObjective, add_training_noise, check_energy_gap


class Gmmc(ChainObjective):
    """E(x, y) - beta E(sample, y') - cross_entropy log p(y | x), where E(x, y) = |phi(x) - mu_y|^2 / 2.

    - discriminative, beta = 0: the features of each image are drawn to the centre of its class. No
      repulsion from the other centres is needed, as the centres are fixed.
    - ``cross_entropy``, which is not in the paper, adds a repulsion. The attraction alone is a regression
      on the centres: phi(x) goes to the mean sum_k p(k | x) mu_k, so the log-odds are linear in p(k | x), and
      no temperature calibrates them.
    - generative, beta > 0: the samples are SGLD chains of log p(x, y'), one class for each slot of the
      replay buffer. At beta = 1 the gradient is that of -log p(x | y); below, some attraction remains.
    - joint: discriminative for the share ``discriminative`` of the training, then generative.

    The generative loss includes energy_decay E^2 at data and samples, since energies that are pushed up grow
    without bound. The noise of the chains is in pixels, as in JEM; the paper adds it to the centre.
    """

    spec: GmmcSpec

    def loss(
        self, model: GMMC, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        if not isinstance(model, GMMC):
            raise UserError(
                "the objective gmmc trains classifiers with fixed centres only",
                expected="the architecture gmmc",
                got=type(model).__name__,
            )
        x = add_training_noise(model, x, generator)
        joint = model.log_joint(x)
        energy = -_of_class(joint, y).mean()
        loss = energy + self.spec.cross_entropy * functional.cross_entropy(joint, y)
        parts = {"energy": float(energy.detach()), "accuracy": accuracy(joint, y)}
        if not self.spec.beta or self.progress < self.spec.discriminative:
            return loss, parts

        def log_prob(x: Tensor, slots: Tensor) -> Tensor:
            return _of_class(model.log_joint(x), slots % model.num_classes)

        samples, slots = self.chains.draw(model, log_prob, len(x), generator)
        sampled = -log_prob(samples, slots)
        gap = sampled.mean() - energy
        check_energy_gap(gap, self.spec.max_gap)
        decay = self.spec.energy_decay * torch.cat([_of_class(joint, y), sampled]).square().mean()
        return loss - self.spec.beta * sampled.mean() + decay, parts | {"gap": float(gap.detach())}


def _of_class(joint: Tensor, y: Tensor) -> Tensor:
    return joint.gather(1, y[:, None]).squeeze(1)
