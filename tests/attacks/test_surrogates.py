"""Pictures made for one model, shown to another."""

from __future__ import annotations

import torch
from torch import Tensor

from robustgen.attacks.surrogates import Transfer
from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.draws import Draws
from robustgen.threat import ThreatModel

THREAT = ThreatModel("linf", 0.1)


class Line(Classifier):
    """Class 1 where the mean of ``pixels`` is above ``level``; without gradients where ``blind``."""

    num_classes, input_shape = 2, (1, 2, 2)

    def __init__(self, pixels: list[int], level: float = 0.5, *, blind: bool = False) -> None:
        super().__init__()
        self.pixels, self.level, self.blind = pixels, level, blind
        self.asked = 0

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        self.asked += len(x)
        lead = x.flatten(1)[:, self.pixels].mean(1) - self.level
        if self.blind:
            lead = (lead > 0).float() - 0.5
        return 10 * torch.stack([-lead, lead], 1)


class Drawn(Line):
    """A line whose level is another one in every draw."""

    stochastic = True

    def __init__(self, pixels: list[int]) -> None:
        super().__init__(pixels)
        self.generator = torch.Generator().manual_seed(0)

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return super().logits(x + 0.08 * torch.randn(len(x), 1, 1, 1, generator=self.generator))


def attack(victim: Classifier, **surrogates: Classifier) -> tuple[Tensor, Tensor, list[str | None]]:
    x = torch.full((6, 1, 2, 2), 0.42)
    x[3:] = 0.3  # out of reach
    transfer = Transfer(THREAT, lambda: surrogates, tuple(surrogates))
    found = transfer(victim, x, torch.zeros(6, dtype=torch.long), Draws(0, "test", torch.arange(6)))
    assert bool(THREAT.contains(x, found.images).all())
    assert found.broken_by is not None
    return x, found.images, found.broken_by


def test_a_victim_without_gradients_falls_to_a_surrogate_that_looks_where_it_does() -> None:
    victim = Line([0, 1, 2], blind=True)
    x, images, broken_by = attack(victim, elsewhere=Line([3]), alike=Line([0, 1, 2, 3], 0.45))
    assert broken_by == ["alike"] * 3 + [None] * 3
    assert torch.equal(images[3:], x[3:])
    assert bool((victim.logits(images[:3]).argmax(1) == 1).all())
    # once for the clean pictures, once a picture and surrogate for those that still stand
    assert victim.asked - 3 == 6 + 6 + 6


def test_the_victim_is_no_surrogate_of_itself() -> None:
    _, images, broken_by = attack(Line([0, 1]), myself=Line([0, 1]))
    assert broken_by == [None] * 6
    assert bool((images.amax((1, 2, 3)) < 0.43).all())


def test_a_stochastic_victim_gets_the_worst_picture_by_the_mean_of_its_draws() -> None:
    x, images, broken_by = attack(Drawn([0, 1]), alike=Line([0, 1]))
    assert torch.allclose(images[:, 0, 0], x[:, 0, 0] + 0.1)
    assert broken_by[3:] == [None] * 3


def test_only_the_victims_calls_are_counted() -> None:
    victim = FixedBatch(Line([0, 1, 2], blind=True), 6)
    victim.begin(6)
    attack(victim, alike=Line([0, 1, 2, 3], 0.45))
    assert victim.forwards.tolist() == [2.0] * 6
    assert victim.backwards.tolist() == [0.0] * 6
