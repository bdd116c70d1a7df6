"""Pictures made for other models: an attack that asks its victim once a picture and model.

For victims whose own gradients cost hundreds of network calls; and a check of the others, since what a
surrogate's picture breaks and the own attack does not shows that the own one is weak.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from robustgen.attacks.fixed import Fixed
from robustgen.attacks.search import Found, Remaining
from robustgen.attacks.victims import said
from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import FixedBatch, serving
from robustgen.draws import Draws
from robustgen.perturb import Attack, Perturbed
from robustgen.threat import ThreatModel

Surrogates = Callable[[], Mapping[str, Classifier]]


class Transfer(Attack):
    """Of each surrogate the point of highest loss after ``steps`` steps, shown to the victim.

    No climb ends at the surrogate's boundary, since what lies just beyond that is seldom beyond the
    victim's. ``surrogates()`` gives models by name, when they are first needed; one that says of the
    pictures what the victim says is the victim itself, and is left out. ``broken_by`` names the surrogate.
    Of a stochastic victim all samples are attacked, and what is kept is the picture that is most wrong by
    the mean over its draws.
    """

    reference = "Papernot et al. 2016, arXiv:1605.07277; the steps as Madry et al. 2018, arXiv:1706.06083"

    def __init__(
        self, threat: ThreatModel, surrogates: Surrogates, names: tuple[str, ...], *, steps: int = 50
    ) -> None:
        super().__init__(threat)
        self.surrogates = surrogates
        self.names = names
        self.climb = Fixed(threat, "label", steps)
        self.name = "transfer" + ("" if steps == 50 else f"-s{steps}")

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> Perturbed:
        found = Found.nothing(x)
        clean = said(model, x)
        remaining = Remaining(found.standing(model, x, y, clean))
        for place, (name, surrogate) in enumerate(self.surrogates().items()):
            left = remaining.rows()
            if not len(left):
                break
            served = FixedBatch(
                surrogate.to(x.device), model.batch if isinstance(model, FixedBatch) else len(x)
            )
            served.begin(len(x), x.device)
            theirs = said(served, x).logits
            if torch.allclose(theirs.log_softmax(1) if model.stochastic else theirs, clean.logits, atol=1e-3):
                continue
            images = self.climb(served, x[left], y[left], draws.at(left, place)).images
            with serving(model, left):
                broken = found.judge(model, left, images, said(model, images), y[left])
            remaining.fell(broken, name, found)
        return Perturbed(found.images, remaining.broken_by)
