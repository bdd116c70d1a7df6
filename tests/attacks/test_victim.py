from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustgen.attacks.losses import log_odds
from robustgen.attacks.victim import Victim
from robustgen.classifiers.base import Classifier, PlainClassifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.classifiers.quick import quick_copy
from robustgen.errors import UserError


class Shifted(Classifier):
    """Class 1 from the grey value ``limit`` on."""

    num_classes, input_shape = 2, (1, 2, 2)

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        level = x.mean((1, 2, 3)) - self.limit
        return torch.stack([-level, level], 1)


@pytest.fixture
def net() -> PlainClassifier:
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(512, 32), nn.SiLU(),
        nn.Linear(32, 10),
    )  # fmt: skip
    return PlainClassifier(module, 10, (1, 8, 8)).eval().requires_grad_(False)


def test_the_gradient_is_autograds(net: PlainClassifier) -> None:
    x, y = torch.rand(5, 1, 8, 8), torch.arange(5)
    answer = Victim(net).gradient(x, lambda z: log_odds(z, y))
    point = x.clone().requires_grad_()
    wanted = log_odds(net.logits(point), y)
    torch.testing.assert_close(answer.loss, wanted.detach())
    torch.testing.assert_close(answer.gradient, torch.autograd.grad(wanted.sum(), point)[0])
    torch.testing.assert_close(answer.logits, net.logits(x))
    assert not x.requires_grad
    assert not any(t.requires_grad for t in answer)
    with torch.no_grad():  # a caller's mode does not matter
        again = Victim(net).gradient(x, lambda z: log_odds(z, y))
    assert torch.equal(again.gradient, answer.gradient)


def test_a_model_without_gradient_is_an_error_that_names_the_remedy(net: PlainClassifier) -> None:
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return net.logits(x).detach()

    victim = Victim(PlainClassifier(Cut(), 10, (1, 8, 8)))
    with pytest.raises(UserError, match="do not depend differentiably on its input"):
        victim.gradient(torch.rand(2, 1, 8, 8), lambda z: z[:, 0])


def test_searches_with_the_copy_and_confirms_with_the_model() -> None:
    model = FixedBatch(Shifted(0.6), 4, quick=Shifted(0.3))
    victim = Victim(model)
    x, y = torch.tensor([0.1, 0.4, 0.7]).view(3, 1, 1, 1).expand(3, 1, 2, 2), torch.zeros(3, dtype=torch.long)
    model.begin(3)
    assert victim.logits(x).logits.argmax(1).tolist() == [0, 1, 1]
    assert victim.confirm(x, y).tolist() == [False, False, True]
    assert model.forwards.tolist() == [2, 2, 2]
    # without a copy it is asked again too, since the search may have asked it with gradients
    alone = FixedBatch(Shifted(0.6), 4)
    alone.begin(3)
    assert Victim(alone).confirm(x, y).tolist() == [False, False, True]
    assert alone.forwards.tolist() == [1, 1, 1]


def test_the_copys_calls_count_for_the_rows_that_are_served() -> None:
    model = FixedBatch(Shifted(0.6), 4, quick=Shifted(0.3))
    model.begin(5)
    victim = Victim(model)
    x = torch.rand(3, 1, 2, 2)
    with victim.serving(torch.tensor([0, 2, 4])), victim.serving(torch.tensor([2])):
        victim.gradient(x[:1], lambda z: z[:, 0])
    assert model.forwards.tolist() == [0, 0, 0, 0, 1]
    assert model.backwards.tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("low", "given", "rough"), [(True, None, True), (True, False, False), (False, None, False)]
)
def test_gradients_are_in_bfloat16_where_the_model_says_so_unless_overridden(
    net: PlainClassifier, low: bool, given: bool | None, rough: bool
) -> None:
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6)
    model = FixedBatch(net, 6, quick=quick_copy(net, x), bfloat16_gradients=low)
    model.begin(6)
    exact = Victim(FixedBatch(net, 6, quick=quick_copy(net, x))).gradient(x, lambda z: log_odds(z, y))
    answer = Victim(model, bfloat16_gradients=given).gradient(x, lambda z: log_odds(z, y))
    assert torch.equal(answer.logits, exact.logits)
    assert torch.equal(answer.loss, exact.loss)
    assert torch.equal(answer.gradient, exact.gradient) != rough
    cosine = functional.cosine_similarity(answer.gradient.flatten(1), exact.gradient.flatten(1))
    assert (cosine > 0.99).all()
