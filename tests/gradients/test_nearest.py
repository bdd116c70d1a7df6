"""The nearest wrong picture on a Gaussian mixture: distance and first-order radius in closed form."""

from __future__ import annotations

import torch
from gaussian_mixture import D, K, Round, right_ones

from robustgen.classifiers.base import Classifier
from robustgen.gradients.nearest import nearest_wrong


def linear_distance(mixture, x, y):
    """min over k of margin / |grad margin|, from the means alone: all planes, since covariances are one."""
    variance = mixture.spread**2 + mixture.test_sigma**2
    flat, own = x.double().flatten(1), mixture.means[y]
    distances = []
    for mean, weight in zip(mixture.means, mixture.weights, strict=True):
        way = own - mean
        margin = (flat * way).sum(1) / variance - (own**2 - mean**2).sum(1) / (2 * variance)
        margin = margin + (mixture.weights[y] / weight).log()
        distances.append(margin / (way.norm(dim=1) / variance).where(way.norm(dim=1) > 0, torch.nan))
    return torch.stack(distances, 1).nan_to_num(torch.inf).amin(1)


def test_where_margins_are_linear_radius_and_distance_are_the_closed_form():
    mixture = Round()
    x, y = right_ones(mixture)
    assert len(x) > 30
    found = nearest_wrong(mixture, x, y, 10)
    exact = linear_distance(mixture, x, y)
    torch.testing.assert_close(found.first_order, exact, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.distance, exact, rtol=5e-3, atol=1e-5)
    assert bool((found.distance > exact * 0.999).all())  # nothing is nearer than the plane
    assert bool((mixture.logits(found.picture).argmax(1) != y).all())
    assert bool((found.margin > 0).all())


def test_a_curved_boundary_is_found_nearer_than_by_a_search_at_random():
    mixture = Round()
    spreads = torch.tensor([0.04, 0.06, 0.09], dtype=torch.float64)
    mixture.covariances = spreads[:, None, None] ** 2 * torch.eye(D, dtype=torch.float64)
    x, y = right_ones(mixture, 40)
    found = nearest_wrong(mixture, x, y, 20)
    reached = found.distance.isfinite()
    assert bool(reached.all())
    generator = torch.Generator().manual_seed(0)
    ways = torch.nn.functional.normalize(torch.randn(400, D, generator=generator, dtype=torch.float64), dim=1)
    for i in torch.where(reached)[0][:12].tolist():
        moved = x[i].double().flatten() + 0.98 * float(found.distance[i]) * ways
        inside = ((moved >= 0) & (moved <= 1)).all(1)
        assert bool((mixture.logits(moved.view(-1, 1, 2, 3)).argmax(1) == y[i])[inside].all())


def test_a_picture_that_is_wrong_as_it_is_has_distance_0_and_one_out_of_reach_none():
    mixture = Round()
    x, y = right_ones(mixture)
    found = nearest_wrong(mixture, x, (y + 1) % K, 3)
    assert bool((found.distance == 0).all())
    assert bool((found.margin < 0).all())
    assert torch.equal(found.picture, x)

    class Sure(Classifier):
        num_classes, input_shape = K, (1, 2, 3)

        def logits(self, x, sigma=None):
            return torch.tensor([50.0, 0.0, 0.0]) + 0.01 * x.flatten(1)[:, :3]

    assert bool(nearest_wrong(Sure(), x[:4], torch.zeros(4, dtype=torch.int64), 3).distance.isnan().all())
