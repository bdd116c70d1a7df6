"""JEM's objective: cross-entropy and maximum likelihood by SGLD samples (Grathwohl et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustgen.classifiers.base import Classifier
from robustgen.classifiers.jem import JEM
from robustgen.classifiers.sampling import sgld
from robustgen.data import Dataset
from robustgen.errors import UserError, describe_error
from robustgen.limits import out_of_memory
from robustgen.training import Diverged, Objective, accuracy, frozen_weights
from robustgen.training.recipe import ChainSpec, SgldSpec
from robustgen.types import FixedNoise


class Chains:
    """Persistent SGLD chains in a replay buffer (Tieleman 2008, persistent contrastive divergence).

    A share ``reinit`` of the chains of a draw restarts from uniform noise; the rest continue.
    ``buffer``: (chains, channels, height, width) in [0, 1].
    """

    def __init__(self, spec: ChainSpec, shape: tuple[int, int, int]) -> None:
        self.spec = spec
        start = torch.Generator().manual_seed(0)
        try:
            self.buffer = torch.rand(spec.buffer, *shape, generator=start)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise UserError(
                "the replay buffer does not fit into memory", where="objective.buffer",
                expected=f"room for {4 * spec.buffer * math.prod(shape) / 1e9:.3g} GB",
                got=describe_error(error), remedy="a smaller buffer",
            ) from None  # fmt: skip

    def draw(
        self,
        model: nn.Module,
        log_prob: Callable[[Tensor, Tensor], Tensor],
        n: int,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Advance ``n`` chains; returns samples (n, channels, height, width) and their buffer slots (n,).

        ``log_prob`` maps samples and slots to log-densities (n,) in nats; ``model`` is the model it calls.
        """
        self.buffer = self.buffer.to(generator.device)
        device = self.buffer.device
        # without replacement: of two chains in one slot only one would be kept
        slots = torch.randperm(len(self.buffer), generator=generator, device=device)[:n]
        start = self.buffer[slots]
        fresh = torch.rand(start.shape, generator=generator, device=device)
        renew = torch.rand(len(start), generator=generator, device=device) < self.spec.reinit
        start = torch.where(renew.view(-1, 1, 1, 1), fresh, start)
        with frozen_weights(model):
            samples = sgld(
                lambda x: log_prob(x, slots),
                start,
                steps=self.spec.steps,
                step_size=self.spec.step_size,
                noise=self.spec.noise,
                generator=generator,
                box=(0.0, 1.0),
            )
        self.buffer[slots] = samples
        return samples, slots


def add_training_noise(model: Classifier, x: Tensor, generator: torch.Generator) -> Tensor:
    """x with Gaussian noise of the model's FixedNoise level; unchanged for other models."""
    sigma = model.noise.sigma if isinstance(model.noise, FixedNoise) else 0.0
    return x + sigma * torch.randn(x.shape, generator=generator, device=x.device)


def check_energy_gap(gap: Tensor, largest: float) -> None:
    """Raise Diverged if |log p(data) - log p(samples)| exceeds ``largest`` nats or is NaN."""
    if not abs(float(gap.detach())) <= largest:
        raise Diverged(
            "the log-densities of data and samples have diverged",
            expected=f"|log p(data) - log p(samples)| up to {largest:g} nats",
            got=f"{float(gap.detach()):g}",
            remedy="a smaller learning rate, more SGLD steps, or energy_decay",
        )


class ChainObjective(Objective):
    """An objective with persistent SGLD chains, which are part of its state."""

    def __init__(self, spec: ChainSpec, data: Dataset) -> None:
        super().__init__(spec, data)
        self.chains = Chains(spec, data.shape)

    def state_dict(self) -> dict[str, Tensor]:
        return {"buffer": self.chains.buffer}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.chains.buffer = state["buffer"].clone()


class Sgld(ChainObjective):
    """-log p(y | x) - weight * log p(x), whose gradient needs samples (equation 2 of the paper).

    grad -log p(x) = grad [log q(samples) - log q(x)], with q = exp f unnormalised. The likelihood term is
    skipped for the share ``discriminative`` of the training, as chains cost several times the rest.
    """

    spec: SgldSpec

    def loss(
        self, model: JEM, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        x = add_training_noise(model, x, generator)
        generative = self.progress >= self.spec.discriminative
        images = x
        if generative:
            samples, _ = self.chains.draw(model, lambda x, _: model.log_prob(x), len(x), generator)
            images = torch.cat([x, samples])
        joint = model.log_joint(images)
        logits = joint[: len(x)]
        log_prob = joint.logsumexp(1)
        classification = functional.cross_entropy(logits, y)
        loss = classification + self.spec.energy_decay * log_prob.square().mean()
        parts = {"classification": float(classification.detach()), "accuracy": accuracy(logits, y)}
        if not generative:
            return loss, parts
        gap = log_prob[: len(x)].mean() - log_prob[len(x) :].mean()
        check_energy_gap(gap, self.spec.max_gap)
        return loss - self.spec.weight * gap, parts | {"gap": float(gap.detach())}
