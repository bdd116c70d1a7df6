"""JEM's objective: cross-entropy and maximum likelihood by SGLD samples (Grathwohl et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from robustgen.classifiers.jem import JEM, sgld
from robustgen.data import Dataset
from robustgen.training import Diverged, Objective, accuracy, frozen
from robustgen.training.recipe import SgldSpec


class Sgld(Objective):
    """-log p(y | x) - weight * log p(x), whose gradient needs samples (equation 2 of the paper).

    grad -log p(x) = grad [log q(samples) - log q(x)], with q = exp f unnormalised. The samples are
    chains of a replay buffer that is shared by all steps (persistent contrastive divergence, Tieleman
    2008): a share ``reinit`` starts anew from uniform noise, the rest go on from where they were.
    """

    spec: SgldSpec

    def __init__(self, spec: SgldSpec, data: Dataset) -> None:
        super().__init__(spec, data)
        start = torch.Generator().manual_seed(0)
        self.buffer = torch.rand(spec.buffer, *data.shape, generator=start)

    def loss(
        self, model: JEM, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        x = x + self.spec.sigma * torch.randn(x.shape, generator=generator, device=x.device)
        samples = self.draw(model, len(x), generator)
        joint = model.log_joint(torch.cat([x, samples]))
        log_prob = joint.logsumexp(1)
        real, fake = log_prob[: len(x)], log_prob[len(x) :]
        gap = real.mean() - fake.mean()
        if not abs(float(gap.detach())) <= self.spec.max_gap:
            raise Diverged(
                "the model and its samples have come apart",
                expected=f"|log p(data) - log p(samples)| up to {self.spec.max_gap:g} nats",
                got=f"{float(gap.detach()):g}",
                remedy="a smaller learning rate, more SGLD steps, or energy_decay",
            )
        logits = joint[: len(x)]
        classification = functional.cross_entropy(logits, y)
        decay = self.spec.energy_decay * log_prob.square().mean()
        parts = {
            "classification": float(classification.detach()),
            "gap": float(gap.detach()),
            "accuracy": accuracy(logits, y),
        }
        return classification - self.spec.weight * gap + decay, parts

    def draw(self, model: JEM, n: int, generator: torch.Generator) -> Tensor:
        """Samples (n, channels, height, width): chains of the buffer, some of them new, moved on."""
        self.buffer = self.buffer.to(generator.device)
        device = self.buffer.device
        # distinct places: of two chains at one place only the later would be kept
        places = torch.randperm(len(self.buffer), generator=generator, device=device)[:n]
        start = self.buffer[places]
        fresh = torch.rand(start.shape, generator=generator, device=device)
        renew = torch.rand(len(start), generator=generator, device=device) < self.spec.reinit
        start = torch.where(renew.view(-1, 1, 1, 1), fresh, start)
        with frozen(model):
            samples = sgld(
                model.log_prob,
                start,
                steps=self.spec.steps,
                step_size=self.spec.step_size,
                noise=self.spec.noise,
                generator=generator,
                box=(0.0, 1.0),
            )
        self.buffer[places] = samples
        return samples

    def state_dict(self) -> dict[str, Tensor]:
        return {"buffer": self.buffer}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.buffer = state["buffer"].clone()
