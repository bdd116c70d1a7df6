"""APGD beside the reference: loss by loss in float64, and verdict by verdict in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pyautoattack import autopgd_base
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor, nn
from torch.nn import functional

from robustgen import data, load_model
from robustgen.attacks.apgd import APGD, apgd, checkpoint_intervals
from robustgen.attacks.replay import replay
from robustgen.attacks.search import Start, run
from robustgen.attacks.victim import Answer, Victim
from robustgen.classifiers.base import PlainClassifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.draws import Draws
from robustgen.threat import ThreatModel

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
LOSSES = ("ce", "dlr", "dlr-targeted")
SEED = 5


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All in float64, the reference's projection in L1 too, which rounds its input to float32.

    In L1 the reference counts the pixels that moved, and takes for moved what its x + delta - delta
    leaves of rounding; so that the counts can be compared, here they are of more than rounding.
    """
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(autopgd_base, "L0_norm", lambda x: (x.abs() > 1e-9).flatten(1).sum(1))
    yield
    torch.set_default_dtype(torch.float32)


class Recording(Victim):
    """A victim that keeps the losses it was asked for, one tensor (batch,) a question."""

    def __init__(self, model: FixedBatch | PlainClassifier) -> None:
        super().__init__(model)
        self.losses: list[Tensor] = []

    def gradient(self, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Answer:
        answer = super().gradient(x, loss)
        assert answer.loss is not None
        self.losses.append(answer.loss)
        return answer


def random_net(n: int) -> tuple[PlainClassifier, Tensor, Tensor]:
    """A net of random weights on 3x6x5, pictures with pixels at the box's sides, and its own predictions."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(90, 32), nn.SiLU(), nn.Linear(32, 10))
    model = PlainClassifier(net.requires_grad_(False), 10, (3, 6, 5))
    x = (torch.rand(n, 3, 6, 5) * 1.4 - 0.2).clamp(0, 1)
    return model, x, model(x).argmax(1)


def reference(model: nn.Module, norm: str, loss: str, eps: float, **more: Any) -> APGDAttack:
    """The reference's attack, as its AutoAttack sets it up."""
    settings = {"norm": NORMS[norm], "eps": eps, "seed": SEED, "device": "cpu"} | more
    settings.setdefault("use_largereps", norm == "l1")
    if loss == "dlr-targeted":
        return APGDAttack_targeted(model, **settings)
    return APGDAttack(model, loss=loss, **settings)


def reference_losses(
    model: PlainClassifier, x: Tensor, y: Tensor, norm: str, loss: str, eps: float, n_iter: int,
    shrinking: bool,
) -> Tensor:  # fmt: skip
    """What the reference's loss was at every point of its one run, (points, batch)."""
    logits: list[Tensor] = []

    def asked(points: Tensor) -> Tensor:
        logits.append(model(points))
        return logits[-1]

    attack = reference(asked, norm, loss, eps, n_iter=n_iter)  # type: ignore[arg-type]
    attack.init_hyperparam(x)
    if isinstance(attack, APGDAttack_targeted):
        attack.y_target = model(x).sort(dim=1)[1][:, -2]
    torch.manual_seed(SEED)
    if norm == "l1" and shrinking:
        early = -(-3 * n_iter // 10)
        attack.decr_eps_pgd(x, y, [3 * eps, 2 * eps, eps], [early, early, n_iter - 2 * early])
    else:
        attack.attack_single_run(x, y)
    criterion = {
        "ce": lambda z: functional.cross_entropy(z, y, reduction="none"),
        "dlr": lambda z: attack.dlr_loss(z, y),
        "dlr-targeted": lambda z: attack.dlr_loss_targeted(z, y),
    }[loss]
    return torch.stack([criterion(z.detach()) for z in logits])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("n_iter", [100, 23])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("norm", "eps", "shrinking"),
    [("linf", 0.05, True), ("l2", 0.25, True), ("l1", 1.0, True), ("l1", 1.0, False)],
)
def test_every_loss_is_the_references(norm: str, eps: float, shrinking: bool, loss: str, n_iter: int) -> None:
    """In L1 with the standard version's shrinking balls, and in one ball as the version plus has it."""
    model, x, y = random_net(16)
    theirs = reference_losses(model, x, y, norm, loss, eps, n_iter, shrinking)
    victim = Recording(model)
    search = apgd(ThreatModel(norm, eps), loss, n_iter=n_iter, shrinking=shrinking)
    replay(search, victim, x, y, SEED)
    ours = torch.stack(victim.losses)
    if loss == "ce":
        ours = functional.softplus(ours)  # of the log odds: see losses.log_odds
    balls = 3 if norm == "l1" and shrinking else 1
    assert ours.shape == theirs.shape == (n_iter + balls, 16)
    assert (ours[-1] > ours[0]).float().mean() > 0.8
    rows = ((ours - theirs).abs() < 1e-9).all(0)
    assert rows.all()


def right_digits(name: str, n: int) -> tuple[FixedBatch, Tensor, Tensor]:
    """A zoo model, and n digits that it gets right."""
    digits = data.load("digits").slice(0, n + 16)
    model = FixedBatch(load_model(name).eval().requires_grad_(False), 64)
    model.begin(len(digits))
    with torch.no_grad():
        right = (model(digits.images).argmax(1) == digits.labels).nonzero().squeeze(1)[:n]
    model.begin(n)
    return model, digits.images[right], digits.labels[right]


def float32_cross_entropy(search: APGD) -> APGD:
    """The same search on the reference's own loss, with its rounding: flat where the label is sure."""
    search.loss, search.initial_loss = (
        lambda z, y, target: functional.cross_entropy(z, y, reduction="none"),
        0.0,
    )
    return search


# A zoo model for each norm, and an eps at which the reference leaves 20 to 80 %.
CASES = {"linf": ("pgd-at-digits", 0.25), "l2": ("softmax-digits", 0.5), "l1": ("softmax-digits", 1.5)}


@pytest.mark.filterwarnings("ignore:there are .* points with zero gradient")
@pytest.mark.parametrize(
    ("norm", "shrinking", "loss"),
    # In one L1 ball the cross-entropy's verdicts differ by 5 of 256, for the reference's counts of moved
    # pixels take rounding for movement; in float64 its losses are the same.
    [(norm, True, loss) for norm in NORMS for loss in LOSSES] + [("l1", False, loss) for loss in LOSSES[1:]],
)
def test_replays_the_references_verdicts(norm: str, shrinking: bool, loss: str) -> None:
    name, eps = CASES[norm]
    model, x, y = right_digits(name, 64)
    jobs = 3 if loss == "dlr-targeted" else 2
    more = {"n_target_classes": 3} if loss == "dlr-targeted" else {"n_restarts": 2}
    more |= {"use_largereps": norm == "l1" and shrinking}
    images = reference(model, norm, loss, eps, n_iter=20, **more).perturb(x.clone(), y.clone())
    theirs = model(images).argmax(1) != y
    assert 0.2 <= 1 - float(theirs.float().mean()) <= 0.8
    search = apgd(ThreatModel(norm, eps), loss, jobs=jobs, n_iter=20, shrinking=shrinking)
    if loss == "ce":
        search = float32_cross_entropy(search)
    ours = replay(search, Victim(model), x, y, SEED)
    assert int((ours.broken != theirs).sum()) <= 0.01 * 64
    assert torch.equal(model(ours.images).argmax(1) != y, ours.broken)


class Sure(nn.Module):
    """The same decisions, each as sure as can be."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return 10_000 * self.model(x)


def test_log_odds_see_through_logits_that_are_too_sure(trained: FixedBatch, digits: data.Dataset) -> None:
    x, y = digits.images[:32], digits.labels[:32]
    trained.begin(32)
    threat, sure = ThreatModel("linf", 0.1), PlainClassifier(Sure(trained), 10, (1, 8, 8))

    def left(model: PlainClassifier | FixedBatch, search: APGD) -> int:
        return int((~replay(search, Victim(model), x, y, SEED).broken).sum())

    plain, ours = (left(model, apgd(threat, "ce", n_iter=20)) for model in (trained, sure))
    flat = left(sure, float32_cross_entropy(apgd(threat, "ce", n_iter=20)))
    assert 4 <= plain <= 28
    assert abs(ours - plain) <= 2
    assert flat > plain + 4


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr", "dlr-targeted", "margin-targeted"])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.6), ("l1", 2.0)])
def test_points_lie_in_ball_and_box(norm: str, eps: float, loss: str) -> None:
    model, x, y = random_net(12)
    threat = ThreatModel(norm, eps)
    search = apgd(threat, loss, n_iter=30)
    rows = torch.arange(12)
    state = search.begin(Start(rows, x, y, model(x), 0 * rows), Draws(0, "apgd", rows))
    asked = 0
    while not state.done.any():
        counts = search.within_budget(state)
        assert threat.contains(x, state.point)[counts].all()
        assert float(state.point.min()) >= 0
        assert float(state.point.max()) <= 1
        asked += int(counts.all())
        search.update(state, search.query(Victim(model), state))
    # L1: 30 % of the steps in each of the two larger balls, and a start in each
    assert asked == (30 - 2 * 9 + 1 if norm == "l1" else 31)
    assert state.done.all()


@pytest.mark.parametrize("n_iter", [1, 2, 10, 23, 50, 100, 1000])
def test_checkpoints_are_the_papers(n_iter: int) -> None:
    """p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06), p_0 = 0, p_1 = 0.22 (section 3.2), in whole steps."""
    wanted, length, last, steps = {}, max(int(0.22 * n_iter), 1), 0, range(1, n_iter + 1)
    for step in steps:
        if step - last == length:
            wanted[step] = length
            last = step
            length = max(length - max(int(0.03 * n_iter), 1), max(int(0.06 * n_iter), 1))
    intervals = checkpoint_intervals(n_iter)
    assert {int(i): int(intervals[i]) for i in intervals.nonzero()} == wanted
    if n_iter == 100:
        assert list(wanted) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_restarts_draw_anew_and_break_more(trained: FixedBatch, digits: data.Dataset) -> None:
    x, y = digits.images[:32], digits.labels[:32]
    trained.begin(32)
    threat = ThreatModel("linf", 0.08)
    rows, model = torch.arange(32), Victim(trained)
    one, four = (
        run(apgd(threat, "dlr", jobs=jobs, n_iter=3), model, x, y, Draws(0, "apgd", rows)).broken
        for jobs in (1, 4)
    )
    assert not (one & ~four).any()
    search = apgd(threat, "ce", jobs=4)
    starts = [
        search.begin(
            Start(rows, x, y, trained(x), 0 * rows + job), Draws(0, "apgd", rows).at(rows, job)
        ).point
        for job in (0, 1)
    ]
    assert (starts[0] != starts[1]).flatten(1).any(1).all()
    assert trained.backwards.min() > 0
