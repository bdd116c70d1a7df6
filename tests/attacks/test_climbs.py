"""The readout of APGD's path, on models where it is known exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustgen.attacks.climbs import COLUMNS, Climbs, climb
from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.draws import Draws
from robustgen.threat import ThreatModel

THREAT = ThreatModel("linf", 0.1)


class Slope(Classifier):
    """Two classes whose logits differ by ``height(mean of the pixels)``: label 0 leads where it is > 0."""

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
    assert (found["fall"] == 0).all()
    assert (found["rise"] > 0).all()
    assert (found["rise"] <= 0.2 + 1e-6).all()  # from the ball's far corner at most
    for name in ("ce_gradient_zero", "gradient_zero", "broken", "broken_again"):
        assert (found[name] == 0).all(), name
    # a step of eps is worth eps, and the least spread is that of the corner
    torch.testing.assert_close(found["promised"], torch.full((8,), 0.1 / 0.4), rtol=1e-4, atol=0)


def test_it_is_broken_where_the_label_loses_its_lead() -> None:
    found = facts(Slope(lambda mean: mean - 0.45))
    assert (found["broken"] == 1).all()
    assert (found["broken_again"] == 1).all()


def test_the_cross_entropy_underflows_where_the_log_odds_do_not() -> None:
    found = facts(Slope(lambda mean: 1000 * mean))
    assert (found["ce_gradient_zero"] == 1).all()
    assert (found["gradient_zero"] == 0).all()


def test_a_gradient_that_points_the_wrong_way_lets_the_loss_fall() -> None:
    wrong = facts(Slope(lambda mean: 2 * mean.detach() - mean))
    assert (wrong["fall"] > wrong["rise"]).any()
    assert (wrong["fall"] >= 0).all()


@pytest.mark.parametrize("fixed", [True, False])
def test_every_eighth_sample_is_climbed_from_by_its_id(fixed: bool) -> None:
    ids = torch.arange(3, 21)
    x = torch.rand(len(ids), 1, 2, 2, generator=torch.Generator().manual_seed(0))
    model = FixedBatch(Slope(), 8) if fixed else Slope()
    if isinstance(model, FixedBatch):
        model.begin(len(ids))
    y = torch.zeros(len(ids), dtype=torch.long)
    table = Climbs(THREAT)(model, x, y, Draws(0, "climbs", ids)).to_pandas()
    assert table["sample_id"].tolist() == [8, 16]
    # the same of these alone: no sample sees its neighbours
    some = (ids % 8 == 0).nonzero().squeeze(1)
    alone = Climbs(THREAT)(model, x[some], y[some], Draws(0, "climbs", ids[some])).to_pandas()
    for name in COLUMNS:
        assert alone[name].tolist() == table[name].tolist()


def test_only_those_that_climb_are_charged_for_it() -> None:
    model, x = FixedBatch(Slope(), 8), torch.full((16, 1, 2, 2), 0.5)
    model.begin(16)
    Climbs(THREAT)(model, x, torch.zeros(16, dtype=torch.long), Draws(0, "climbs", torch.arange(16)))
    assert (model.forwards[[0, 8]] > 100).all()
    assert (model.forwards[1:8] < 1).all()


@pytest.mark.parametrize(
    "height", [lambda mean: mean.detach(), lambda mean: (mean > 0.4).float()], ids=["detached", "step"]
)
def test_a_model_without_gradients_has_no_rows(height) -> None:
    x, y = torch.full((8, 1, 2, 2), 0.5), torch.zeros(8, dtype=torch.long)
    assert len(Climbs(THREAT)(Slope(height), x, y, Draws(0, "climbs", torch.arange(8)))) == 0
