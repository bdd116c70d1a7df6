"""Transfer attacks: adversarial images made for other models, shown to this one.

For models whose own gradients cost hundreds of network calls; and as a check for all others: an image from a
surrogate that breaks a sample which the white-box attack did not break shows that this attack is weak.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from robustgen.attacks.fixed import FixedSteps
from robustgen.attacks.progress import Progress
from robustgen.attacks.victim import predict
from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.draws import Draws
from robustgen.perturb import Attack, Perturbed
from robustgen.threat import ThreatModel

Surrogates = Callable[[], Mapping[str, Classifier]]


class Transfer(Attack):
    """For each surrogate, the point of highest loss after ``steps`` steps on it, shown to the attacked model.

    The steps do not end at the surrogate's decision boundary, since points just beyond that are seldom beyond
    the attacked model's. ``surrogates()`` returns the models by name and is called on first use; a surrogate
    whose predictions equal the attacked model's is that model itself and is left out. ``broken_by`` names the
    surrogate. If the attacked model is stochastic, all samples are attacked, and the image that is most wrong
    by the mean over its draws is kept.
    """

    reference = "Papernot et al. 2016, arXiv:1605.07277; the steps as Madry et al. 2018, arXiv:1706.06083"

    def __init__(
        self, threat: ThreatModel, surrogates: Surrogates, names: tuple[str, ...], *, steps: int = 50
    ) -> None:
        super().__init__(threat)
        self.surrogates = surrogates
        self.stage_names = names
        self.attack = FixedSteps(threat, "label", steps)
        self.name = "transfer" + ("" if steps == 50 else f"-s{steps}")

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> Perturbed:
        progress = Progress(model, x, y)
        clean = progress.clean.logits
        batch = model.batch if isinstance(model, FixedBatch) else len(x)
        for place, (name, surrogate) in enumerate(self.surrogates().items()):
            rows = progress.remaining()
            if len(rows) == 0:
                break
            attacked = FixedBatch(surrogate.to(x.device), batch)
            attacked.begin(len(x), x.device)
            logits = predict(attacked, x).logits
            if torch.allclose(logits.log_softmax(1) if model.stochastic else logits, clean, atol=1e-3):
                continue
            images = self.attack(attacked, x[rows], y[rows], draws.at(rows, place)).images
            progress.judge(rows, images, name)
        return Perturbed(progress.images, progress.broken_by)
