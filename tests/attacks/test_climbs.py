"""What a climb is said to meet, on models where all of it is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustgen.attacks.climbs import COLUMNS, climb
from robustgen.attacks.probes import EVERY, Probes
from robustgen.classifiers.base import Classifier, FixedBatch
from robustgen.draws import Draws
from robustgen.threat import ThreatModel

THREAT = ThreatModel("linf", 0.1)


class Slope(Classifier):
    """Two classes, whose logits differ by ``height(mean pixel)``; the label 0 leads where it is > 0."""

    num_classes, input_shape = 2, (1, 2, 2)

    def __init__(self, height=lambda mean: mean) -> None:
        super().__init__()
        self.height = height

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        lead = self.height(x.mean((1, 2, 3)))
        return torch.stack([lead, torch.zeros_like(lead)], 1)


def facts(model: Classifier, level: float = 0.5, n: int = 8) -> dict[str, Tensor]:
    x, y = torch.full((n, 1, 2, 2), level), torch.zeros(n, dtype=torch.long)
    found = climb(model, x, y, Draws(0, "climb", torch.arange(n)), THREAT)
    assert tuple(found) == COLUMNS
    assert all(values.shape == (n,) for values in found.values())
    return found


def test_on_a_slope_the_loss_rises_to_the_corner_and_stays() -> None:
    found = facts(Slope())
    assert (found["climb_fall"] == 0).all()
    assert (found["climb_rise"] > 0).all()
    assert (found["climb_rise"] <= 0.2 + 1e-6).all()  # from the ball's far corner at most
    for name in ("climb_ce_gradient_zero", "climb_gradient_zero", "climb_broken", "climb_broken_again"):
        assert (found[name] == 0).all(), name
    # a step of eps is worth eps, and the least spread is that of the corner
    torch.testing.assert_close(found["climb_promised"], torch.full((8,), 0.1 / 0.4), rtol=1e-4, atol=0)


def test_it_is_broken_where_the_label_loses_its_lead() -> None:
    found = facts(Slope(lambda mean: mean - 0.45))
    assert (found["climb_broken"] == 1).all()
    assert (found["climb_broken_again"] == 1).all()


def test_the_cross_entropy_underflows_where_the_log_odds_do_not() -> None:
    found = facts(Slope(lambda mean: 1000 * mean))
    assert (found["climb_ce_gradient_zero"] == 1).all()
    assert (found["climb_gradient_zero"] == 0).all()


def test_a_gradient_that_points_the_wrong_way_lets_the_loss_fall() -> None:
    wrong = facts(Slope(lambda mean: 2 * mean.detach() - mean))
    assert (wrong["climb_fall"] > wrong["climb_rise"]).any()
    assert (wrong["climb_fall"] >= 0).all()


@pytest.mark.parametrize("fixed", [True, False])
def test_the_probes_climb_from_every_eighth_sample_by_its_id(fixed: bool) -> None:
    ids = torch.arange(3, 21)
    x = torch.rand(len(ids), 1, 2, 2, generator=torch.Generator().manual_seed(0))
    model = FixedBatch(Slope(), 8) if fixed else Slope()
    if isinstance(model, FixedBatch):
        model.begin(len(ids))
    y = torch.zeros(len(ids), dtype=torch.long)
    table = Probes(THREAT)(model, x, y, Draws(0, "probes", ids)).to_pandas()
    climbed = table["climb_rise"].notna().to_numpy()
    assert table["sample_id"][climbed].tolist() == [8, 16]
    if isinstance(model, FixedBatch):
        assert (model.forwards[:5] < 20).all()
        assert model.forwards[5] > 100
    # the same of these alone: no sample sees its neighbours
    some = (ids % EVERY == 0).nonzero().squeeze(1)
    alone = Probes(THREAT)(model, x[some], y[some], Draws(0, "probes", ids[some])).to_pandas()
    for name in COLUMNS:
        assert alone[name].tolist() == table[name][climbed].tolist()
