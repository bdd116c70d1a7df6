"""AutoAttack's parts and versions, against nets whose exact robust accuracy is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from linear_oracle import DUAL, model_and_pictures
from pyautoattack import AutoAttack as Reference
from torch import Tensor, nn

from robustgen.attacks.apgd import APGD, SparseAPGD
from robustgen.attacks.autoattack import (
    PLUS,
    STANDARD,
    ApgdT,
    AutoAttack,
    AutoAttackBudget,
    AutoAttackPlus,
    AutoAttackRand,
    build_part,
    dlr_or_margin,
)
from robustgen.attacks.fab import FAB
from robustgen.attacks.joint import ADAPTIVE
from robustgen.attacks.losses import LOSSES
from robustgen.attacks.screen import ScreenedSquare
from robustgen.audit import is_repeated
from robustgen.classifiers.base import Classifier, PlainClassifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.draws import Draws
from robustgen.errors import UserError
from robustgen.threat import ThreatModel

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def attack_all(
    kind: type[AutoAttack], model: FixedBatch, x: Tensor, y: Tensor, threat: ThreatModel, **options: Any
) -> Tensor:
    """Whether each sample is broken; what comes back is checked."""
    model.begin(len(x))
    found = kind(threat, **options)(model, x, y, Draws(0, "aa", torch.arange(len(x))))
    assert threat.contains(x, found.images).all()
    broken = model.logits(found.images).argmax(1) != y
    assert found.broken_by is not None
    assert broken.tolist() == [name is not None for name in found.broken_by]
    return broken


def between(distances: Tensor) -> float:
    """An eps near the median that no sample's distance comes near to: FAB ends 0.3 % behind a boundary,
    where its last step goes 5 % too far of a last tenth of the way, and APGD's steps are not endless."""
    ordered = distances.sort().values
    middle = ordered[int(0.35 * len(ordered)) : int(0.65 * len(ordered))]
    k = int((middle[1:] / middle[:-1]).argmax())
    assert middle[k + 1] / middle[k] > 1.01
    return float((middle[k] * middle[k + 1]).sqrt())


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("norm", DUAL)
def test_reaches_the_exact_robust_accuracy_of_a_linear_net(norm: str, classes: int) -> None:
    """With 2 and 3 classes on the margin, for DLR needs 3 and 4."""
    net, model, x, y = model_and_pictures(classes)
    distances = net.distances(x, y, DUAL[norm])
    eps = between(distances)
    assert eps < 0.4, "away from the box"
    broken = attack_all(AutoAttack, model, x, y, ThreatModel(norm, eps), n_iter=20, n_queries=20)
    assert torch.equal(broken, distances < eps)


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_scaled_logits_hide_nothing(scale: float) -> None:
    net, model, x, y = model_and_pictures(10, scale)
    distances = net.distances(x, y, DUAL["linf"])
    eps = between(distances)
    broken = attack_all(AutoAttack, model, x, y, ThreatModel("linf", eps), n_iter=20, n_queries=20)
    assert torch.equal(broken, distances < eps)


class Mixture(Classifier):
    """p(x, y) of two Gaussians of one covariance, a diagonal one: the boundary is a plane."""

    num_classes, input_shape = 2, (1, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        middle = 0.5 + 0.02 * torch.randn(36, generator=generator)
        apart = 0.01 * torch.randn(36, generator=generator)
        self.means = torch.stack([middle - apart, middle + apart])
        self.variance = 0.001 + 0.002 * torch.rand(36, generator=generator)
        self.shares = torch.tensor([0.3, 0.7])

    def log_joint(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        apart = (x.flatten(1)[:, None] - self.means) ** 2 / self.variance
        return self.shares.log() - apart.sum(2) / 2 - (6.2831853 * self.variance).log().sum() / 2

    def distances(self, x: Tensor, y: Tensor, dual: float) -> Tensor:
        """To the plane, in the dual norm: log-odds over the norm of their gradient."""
        normal = ((self.means[1] - self.means[0]) / self.variance).double()
        middle = ((self.means[1] ** 2 - self.means[0] ** 2) / self.variance).double().sum() / 2
        odds = x.flatten(1).double() @ normal - middle + (self.shares[1] / self.shares[0]).double().log()
        return torch.where(y == 1, odds, -odds) / torch.linalg.vector_norm(normal, ord=dual)


@pytest.mark.parametrize("norm", DUAL)
def test_reaches_the_exact_robust_accuracy_of_a_gaussian_mixture(norm: str) -> None:
    mixture = Mixture()
    y = torch.arange(64) % 2
    x = mixture.means[y].view(-1, 1, 6, 6) + mixture.variance.sqrt().view(1, 6, 6) * torch.randn(64, 1, 6, 6)
    right = mixture(x).argmax(1) == y
    assert right.float().mean() > 0.6
    x, y = x[right], y[right]
    distances = mixture.distances(x, y, DUAL[norm])
    assert (distances > 0).all()
    eps = between(distances)
    model = FixedBatch(mixture, len(x))
    broken = attack_all(AutoAttack, model, x, y, ThreatModel(norm, eps), n_iter=20, n_queries=20)
    assert torch.equal(broken, distances < eps)


@pytest.mark.parametrize("norm", NORMS)
def test_parts_and_budgets_are_the_references(norm: str) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    for kind, version, order in ((AutoAttack, "standard", STANDARD), (AutoAttackPlus, "plus", PLUS)):
        theirs = Reference(net, norm=NORMS[norm], eps=0.1, version=version)
        assert tuple(theirs.attacks_to_run) == order
        model = PlainClassifier(net, 10, (1, 8, 8))
        stages = kind(ThreatModel(norm, 0.1)).stages(model)
        assert tuple(stage.name for stage in stages) == order
        for name, search, _ in stages:
            if name == "square":
                assert isinstance(search, ScreenedSquare)
                assert search.n_steps == theirs.square.n_queries
            elif name.startswith("fab"):
                assert isinstance(search, FAB)
                assert search.n_iter == theirs.fab.n_iter
                # the reference's targeted FAB starts once for each class
                assert search.jobs == (
                    theirs.fab.n_target_classes if name == "fab-t" else theirs.fab.n_restarts
                )
            else:
                assert isinstance(search, APGD)
                wanted = theirs.apgd_targeted if name == "apgd-t" else theirs.apgd
                assert search.n_iter == wanted.n_iter
                jobs = theirs.apgd_targeted.n_target_classes if name == "apgd-t" else theirs.apgd.n_restarts
                assert search.jobs == jobs
                if norm == "l1":
                    assert isinstance(search, SparseAPGD)
                    assert search.shrinking == wanted.use_largereps


def test_rand_is_the_references_in_l1() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    theirs = Reference(net, norm="L1", eps=0.1, version="rand").apgd
    for _, search, _ in AutoAttackRand(ThreatModel("l1", 0.1)).stages(PlainClassifier(net, 10, (1, 8, 8))):
        assert isinstance(search, SparseAPGD)
        assert (search.jobs, search.shrinking) == (theirs.n_restarts, theirs.use_largereps) == (1, False)


def test_losses_fall_back_to_the_margin_where_classes_are_few() -> None:
    assert [dlr_or_margin("dlr", k) for k in (2, 3, 4)] == ["margin", "dlr", "dlr"]
    assert [dlr_or_margin("dlr-targeted", k) for k in (2, 3, 4)] == [
        "margin-targeted", "margin-targeted", "dlr-targeted",
    ]  # fmt: skip
    threat = ThreatModel("linf", 0.1)
    for classes, jobs in ((2, 1), (3, 2), (10, 9), (100, 9)):
        search = build_part("apgd-t", threat, AutoAttackBudget(), classes)
        assert isinstance(search, APGD)
        assert search.jobs == jobs
        assert search.loss is LOSSES[dlr_or_margin("dlr-targeted", classes)]
        assert build_part("fab-t", threat, AutoAttackBudget(), classes).jobs == jobs


def test_unknown_options_are_errors() -> None:
    for options in ({"n_iter": 0}, {"queries": 5}, {"n_queries": -1}, {"restarts": 0}):
        with pytest.raises(UserError):
            AutoAttack(ThreatModel("linf", 0.1), **options)


def test_a_smaller_budget_shows_in_the_name() -> None:
    threat = ThreatModel("linf", 0.1)
    names = {AutoAttack(threat, **o).name for o in ({}, {"n_iter": 50}, {"n_queries": 50}, {"restarts": 2})}
    assert len(names) == 4
    assert AutoAttack(threat, n_iter=100).name == AutoAttack(threat).name == "autoattack"


def test_only_what_an_audit_follows_ends_jobs_early() -> None:
    threat = ThreatModel("linf", 0.1)
    assert not AutoAttack(threat).thorough
    assert AutoAttack(threat, thorough=True).thorough
    assert AutoAttack(threat, thorough=True).name == "autoattack-thorough"
    assert AutoAttackRand(threat).thorough
    assert ApgdT(threat).thorough
    early = (*STANDARD, *PLUS, *ADAPTIVE)
    assert all(is_repeated(name, early=True) for name in early)
    aimed = [name for name in early if is_repeated(name, early=False)]
    assert aimed == ["apgd-t", "fab-t", "apgd-t", "fab-t", "apgd-margin-t"]
