import math

import pytest
import torch

from robustgen.classifiers.base import PlainClassifier
from robustgen.training import make_objective
from robustgen.training.recipe import CrossEntropySpec


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_loss_and_accuracy_by_hand(smoothing):
    """Logits (log 3, 0): p = (3/4, 1/4). Smoothing moves half of its share to the other class."""
    model = PlainClassifier(torch.nn.Flatten(), 2, (1, 1, 2))
    x = torch.tensor([math.log(3), 0.0]).view(1, 1, 1, 2).expand(4, 1, 1, 2)
    objective = make_objective(CrossEntropySpec(kind="cross-entropy", label_smoothing=smoothing), None)
    loss, parts = objective.loss(model, x, torch.tensor([0, 0, 0, 1]), torch.Generator())
    right, wrong = -math.log(3 / 4), -math.log(1 / 4)
    share = 3 / 4 * (1 - smoothing) + smoothing / 2  # of the weight that lies on class 0
    assert float(loss) == pytest.approx(share * right + (1 - share) * wrong, rel=1e-6)
    assert parts == {"accuracy": 0.75}
