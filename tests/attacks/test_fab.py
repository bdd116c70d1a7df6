from __future__ import annotations

import pytest
import torch
from linear_oracle import DUAL, away_from_the_box, model_and_pictures
from pyautoattack.fab_pt import FABAttack_PT

from robustgen import load_model
from robustgen.attacks.fab import FAB, LeanFAB, LeanUntargetedFAB, UntargetedFAB, nearest_boundary
from robustgen.attacks.replay import replay
from robustgen.attacks.search import Start, run
from robustgen.attacks.victim import Victim
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.data import Dataset
from robustgen.draws import Draws
from robustgen.threat import ThreatModel

NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}
# (model, norm, eps), at which FAB's reference leaves 20 to 80 % of the pictures
SETTINGS = [
    ("pgd-at-digits", "linf", 0.26),
    ("pgd-at-digits", "l2", 0.7),
    ("pgd-at-digits", "l1", 2.5),
    ("softmax-digits", "linf", 0.08),
    ("softmax-digits", "l2", 0.4),
    ("softmax-digits", "l1", 1.0),
]


def digits_model(name: str) -> FixedBatch:
    model = FixedBatch(load_model(name).eval().requires_grad_(False), 64)
    model.begin(64)
    return model


def draws_of(digits: Dataset) -> Draws:
    return Draws(0, "test", digits.sample_ids)


@pytest.mark.parametrize(
    ("name", "norm", "eps", "targeted"),
    # an untargeted iteration costs nine gradients
    [(*setting, True) for setting in SETTINGS] + [(*setting, False) for setting in SETTINGS[3:]],
)
def test_gives_the_verdicts_of_the_reference(
    digits: Dataset, name: str, norm: str, eps: float, targeted: bool
) -> None:
    model, some = digits_model(name), digits.slice(0, 64)
    x, y = some.images, some.labels
    n_iter = 10 if targeted else 3
    reference = FABAttack_PT(
        model, norm=NAMES[norm], eps=eps, n_iter=n_iter, seed=3, targeted=targeted,
        n_target_classes=2, n_restarts=1 if targeted else 2,
    )  # fmt: skip
    broken = model(reference.perturb(x, y)).argmax(1) != y
    assert 0.2 <= broken.float().mean() <= 0.8
    kind = FAB if targeted else UntargetedFAB
    found = replay(kind(ThreatModel(norm, eps), jobs=2, n_iter=n_iter), Victim(model), x, y, 3)
    assert (found.broken != broken).sum() <= 1


@pytest.mark.parametrize("kind", [FAB, LeanFAB])
@pytest.mark.parametrize(("name", "norm", "eps"), SETTINGS[3:])
def test_a_run_gives_the_verdicts_of_the_replay(
    digits: Dataset, name: str, norm: str, eps: float, kind: type[FAB]
) -> None:
    model, some = digits_model(name), digits.slice(0, 64)
    x, y = some.images, some.labels
    threat = ThreatModel(norm, eps)
    search = kind(threat, jobs=2, n_iter=10)
    found = run(search, Victim(model), x, y, draws_of(some), width=16)
    assert torch.equal(found.broken, replay(search, Victim(model), x, y, 0).broken)
    assert torch.equal(model(found.images).argmax(1) != y, found.broken)
    assert (threat.distance(x, found.images) <= eps).all()
    assert ((found.images >= 0) & (found.images <= 1)).all()


@pytest.mark.parametrize("kind", [FAB, LeanFAB, UntargetedFAB, LeanUntargetedFAB])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_finds_the_exact_distance_of_a_linear_model(norm: str, kind: type[FAB]) -> None:
    net, model, x, y = model_and_pictures(10)
    model.begin(64)
    distance = net.distances(x, y, DUAL[norm])
    eps = float(distance.median())
    search = kind(ThreatModel(norm, eps), jobs=1 if issubclass(kind, UntargetedFAB) else 9, n_iter=10)
    broken = run(search, Victim(model), x, y, Draws(0, "test", torch.arange(64))).broken
    assert not (broken & (distance > eps * (1 + 1e-5))).any(), "FAB beat the oracle"
    # eta and beta leave it within 1 % of the boundary
    breakable = distance < eps * 0.99
    assert breakable.sum() > 20
    assert broken[breakable].all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_untargeted_aims_at_the_nearest_boundary(norm: str) -> None:
    net, model, x, y = model_and_pictures(10)
    answer = nearest_boundary(Victim(model), x, y, norm)
    assert answer.loss is not None
    assert answer.gradient is not None
    steepness = torch.linalg.vector_norm(answer.gradient.flatten(1), ord=DUAL[norm], dim=1)
    assert torch.allclose(-answer.loss / steepness, net.distances(x, y, DUAL[norm]).float(), rtol=1e-4)
    assert torch.equal(answer.logits, model(x))


def test_untargeted_asks_for_one_forward_and_a_gradient_for_each_class() -> None:
    _, model, x, y = model_and_pictures(10)
    model.begin(len(x))
    nearest_boundary(Victim(model), x, y, "l2")
    assert (model.forwards == 1).all()
    assert (model.backwards == 9).all()


@pytest.mark.parametrize(("kind", "questions"), [(FAB, 2 * 10), (LeanFAB, 10 + 1)])
def test_how_often_the_model_is_asked(kind: type[FAB], questions: int) -> None:
    _, model, x, y = model_and_pictures(2)
    model.begin(64)
    run(kind(ThreatModel("l2", 1e-6), n_iter=10), Victim(model), x, y, Draws(0, "test", torch.arange(64)))
    # On a linear model every iteration ends behind the boundary, so FAB asks anew on the way back.
    assert (model.forwards == 1 + questions).all()
    assert (model.backwards == questions).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_lean_gets_nearer_than_the_reference_with_as_many_passes(digits: Dataset, norm: str) -> None:
    model, some = digits_model("pgd-at-digits"), digits.slice(0, 64)
    right = model(some.images).argmax(1) == some.labels
    x, y = some.images[right], some.labels[right]
    threat = ThreatModel(norm, 1e6)
    # forward passes: two an iteration there, one here
    reference = FABAttack_PT(model, norm=NAMES[norm], n_iter=10, targeted=True)
    reference.target_class = 2
    theirs = threat.distance(x, reference.attack_single_run(x, y, is_targeted=True))
    search, victim = LeanFAB(threat, n_iter=19), Victim(model)
    rows = torch.arange(len(x))
    state = search.begin(Start(rows, x, y, model(x), torch.zeros_like(rows)), Draws(0, "test", rows))
    ours = torch.full_like(theirs, torch.inf)
    assert search.gap(state).isinf().all()  # nothing is known yet
    while not state.done.all():
        answer = search.query(victim, state)
        reached = torch.where(answer.logits.argmax(1) != y, threat.distance(x, state.point), torch.inf)
        ours = ours.minimum(reached)
        search.update(state, answer)
    assert ours.mean() < theirs.mean()
    torch.testing.assert_close(search.gap(state).double(), (ours.double() / threat.eps).log())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_restarts_begin_at_half_the_radius(norm: str) -> None:
    x = away_from_the_box(8)
    threat = ThreatModel(norm, 0.1)
    rows, job = torch.arange(8), torch.tensor([0, 1] * 4)
    start = Start(rows, x, torch.zeros_like(rows), torch.zeros(8, 10), job)
    point = UntargetedFAB(threat, jobs=2).begin(start, Draws(0, "test", rows)).point
    assert torch.allclose(threat.distance(x, point), 0.05 * job.double(), atol=1e-5)
