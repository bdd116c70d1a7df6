from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from pyautoattack.square import SquareAttack
from scipy import stats
from torch import Tensor, nn

from robustgen import data, load_model
from robustgen.attacks.replay import replay
from robustgen.attacks.search import SearchResult, Start, run
from robustgen.attacks.square import peaks, square
from robustgen.attacks.victim import Answer, Victim
from robustgen.classifiers.base import PlainClassifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.data import Dataset
from robustgen.draws import Draws
from robustgen.errors import UnsupportedError
from robustgen.threat import ThreatModel

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
# A zoo model for each norm, and an eps at which the reference leaves a part of the pictures.
CASES = {"linf": ("pgd-at-digits", 0.3), "l2": ("softmax-digits", 0.7), "l1": ("pgd-at-digits", 3.0)}
QUERIES = 200


class Reference(NamedTuple):
    """What the reference found, and where it broke the model."""

    images: Tensor
    broken: Tensor


def reference(model: FixedBatch, threat: ThreatModel, x: Tensor, y: Tensor, queries: int) -> Reference:
    """The reference, as AutoAttack sets it."""
    attack = SquareAttack(
        model, norm=NORMS[threat.norm], n_queries=queries, eps=threat.eps, seed=5,
        p_init=0.8, resc_schedule=False,
    )  # fmt: skip
    images = attack.perturb(x.clone(), y.clone())
    with torch.no_grad():
        return Reference(images, model(images).argmax(1) != y)


def draws(n: int) -> Draws:
    return Draws(0, "square", torch.arange(n))


class Case(NamedTuple):
    threat: ThreatModel
    model: FixedBatch
    x: Tensor
    y: Tensor
    reference: Reference


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    """64 digits that a zoo model gets right, and what the reference does with them."""
    name, eps = CASES[request.param]
    digits = data.load("digits").slice(0, 80)
    model = FixedBatch(load_model(name).eval().requires_grad_(False), 64)
    model.begin(len(digits))
    with torch.no_grad():
        right = (model(digits.images).argmax(1) == digits.labels).nonzero().squeeze(1)[:64]
    x, y = digits.images[right], digits.labels[right]
    model.begin(64)
    threat = ThreatModel(request.param, eps)
    return Case(threat, model, x, y, reference(model, threat, x, y, QUERIES))


def colours(n: int) -> tuple[FixedBatch, Tensor, Tensor]:
    """A random net on pictures of three channels that are wider than high, and its own predictions."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 17 * 19, 16), nn.Tanh(), nn.Linear(16, 10))
    model = FixedBatch(PlainClassifier(net.requires_grad_(False), 10, (3, 17, 19)), n)
    model.begin(n)
    x = torch.rand(n, 3, 17, 19)
    return model, x, model(x).argmax(1)


def same_pictures(ours: SearchResult, theirs: Reference, norm: str) -> bool:
    """Bit for bit in Linf, where nothing is summed up."""
    a, b = ours.images[ours.broken], theirs.images[theirs.broken]
    return torch.equal(a, b) if norm == "linf" else torch.allclose(a, b, rtol=0, atol=2e-6)


def test_replays_the_reference(case: Case) -> None:
    left = 1 - float(case.reference.broken.float().mean())
    assert 0.2 <= left <= 0.8
    ours = replay(square(case.threat, n_queries=QUERIES), Victim(case.model), case.x, case.y, seed=5)
    assert torch.equal(ours.broken, case.reference.broken)
    assert same_pictures(ours, case.reference, case.threat.norm)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.15), ("l2", 4.0), ("l1", 16.0)])
def test_replays_the_reference_in_colour(norm: str, eps: float) -> None:
    model, x, y = colours(32)
    threat = ThreatModel(norm, eps)
    theirs = reference(model, threat, x, y, 100)
    assert 0.2 <= float(theirs.broken.float().mean()) <= 0.8
    ours = replay(square(threat, n_queries=100), Victim(model), x, y, seed=5)
    assert torch.equal(ours.broken, theirs.broken)
    assert same_pictures(ours, theirs, norm)


def test_breaks_as_many_as_the_reference(case: Case) -> None:
    """With its own draws: of 64 pairs, those that differ fall either way alike (exact sign test, 1 %)."""
    search = square(case.threat, n_queries=QUERIES)
    found = run(search, Victim(case.model), case.x, case.y, draws(64))
    assert torch.equal(found.broken, case.model(found.images).argmax(1) != case.y)
    more = int((found.broken & ~case.reference.broken).sum())
    fewer = int((case.reference.broken & ~found.broken).sum())
    assert abs(more - fewer) <= 0.1 * 64
    assert more + fewer == 0 or stats.binomtest(more, more + fewer).pvalue > 0.01


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 1.0), ("l1", 4.0)])
def test_a_row_goes_its_own_way(trained: FixedBatch, digits: Dataset, norm: str, eps: float) -> None:
    search = square(ThreatModel(norm, eps), n_queries=40)

    def some(rows: Tensor, width: int | None = None) -> SearchResult:
        trained.begin(len(rows))
        own = Draws(7, "e", digits.sample_ids[rows])
        return run(search, Victim(trained), digits.images[rows], digits.labels[rows], own, width=width)

    whole = some(torch.arange(32))
    assert 4 < int(whole.broken.sum()) < 28
    for rows, width in (
        (torch.arange(32).flip(0), None),
        (torch.arange(32), 5),
        (torch.arange(9, 30), 8),
        (torch.tensor([int(whole.broken.nonzero()[-1])]), None),
    ):
        part = some(rows, width)
        assert torch.equal(part.images, whole.images[rows])
        assert torch.equal(part.broken, whole.broken[rows])


def test_asks_once_for_the_start_and_once_a_query(trained: FixedBatch, digits: Dataset) -> None:
    trained.begin(16)
    threat = ThreatModel("linf", 0.05)
    found = run(
        square(threat, n_queries=9), Victim(trained), digits.images[:16], digits.labels[:16], draws(16)
    )
    assert (~found.broken).sum() > 8
    assert (trained.forwards[~found.broken] == 1 + 9).all()


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 1.0), ("l1", 6.0)])
def test_every_point_lies_in_ball_and_box(norm: str, eps: float) -> None:
    model, x, y = colours(24)
    x[8:16] = x[8:16].round()  # black and white
    x[16:] = 0.5  # far from the box
    threat = ThreatModel(norm, eps)
    search = square(threat, n_queries=60)
    start = Start(torch.arange(24), x, y, model(x), torch.zeros(24, dtype=torch.long))
    state = search.begin(start, draws(24))
    while not state.done.any():
        assert threat.contains(x, state.point).all()
        assert float(state.point.min()) >= 0
        assert float(state.point.max()) <= 1
        # where the box is far, the whole budget is spent
        assert torch.allclose(threat.distance(x, state.point)[16:].float(), torch.tensor(eps), rtol=1e-5)
        search.update(state, search.query(Victim(model), state))
    assert state.step.tolist() == [61] * 24


@pytest.mark.parametrize("norm", NORMS)
def test_windows_shrink_as_in_the_reference(norm: str) -> None:
    ends = [10, 50, 200, 500, 1000, 2000, 4000, 5000]
    proposals = [0, 1, *(end + i for end in ends for i in (-1, 0, 1))]
    rows = len(proposals)
    x = torch.zeros(rows, 1, 28, 30)
    y = torch.zeros(rows, dtype=torch.long)
    search = square(ThreatModel(norm, 0.1, box=(-1.0, 1.0)))
    state = search.begin(Start(torch.arange(rows), x, y, torch.zeros(rows, 10), y), draws(rows))
    state.point = state.best = x  # nothing is changed yet, so that a window shows
    state.step = torch.tensor(proposals)
    search.update(state, Answer(torch.zeros(rows, 10)))
    theirs = SquareAttack(None, p_init=0.8, resc_schedule=False)
    for proposal, changed in zip(proposals, state.point != x, strict=True):
        size = round(math.sqrt(theirs.p_selection(proposal) * 28 * 30))
        size = max(size, 1) if norm == "linf" else max(size, 3) // 2 * 2 + 1
        assert int(changed.any(2).sum()) == int(changed.any(1).sum()) == size
        assert int(changed.sum()) == size**2
        assert not changed[:, -1].any()


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_peaks_are_the_references(norm: str) -> None:
    theirs = SquareAttack(None, norm=NORMS[norm], device="cpu")
    for size in (1, 2, 3, 5, 6, 7, 25, 29):
        for seed in (0, 1):  # one of them turns the window
            torch.manual_seed(seed)
            turned = int(torch.rand(1) > 0.5)
            torch.manual_seed(seed)
            ours = peaks(size, 2 if norm == "l2" else 1)[turned]
            assert torch.allclose(ours, theirs.eta(size), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_refuses_pictures_below_5x5_but_in_linf(norm: str) -> None:
    x, y = torch.full((1, 1, 4, 6), 0.5), torch.zeros(1, dtype=torch.long)
    start = Start(y, x, y, torch.zeros(1, 10), y)
    with pytest.raises(UnsupportedError, match="at least 5x5 pixels"):
        square(ThreatModel(norm, 0.1)).begin(start, draws(1))
    assert square(ThreatModel("linf", 0.1)).begin(start, draws(1)).point.shape == x.shape


class Undecided(Victim):
    """All logits are the same wherever it is asked."""

    def logits(self, x: Tensor) -> Answer:
        return Answer(torch.zeros(len(x), 10))


@pytest.mark.parametrize("norm", NORMS)
def test_a_tie_is_no_success(trained: FixedBatch, digits: Dataset, norm: str) -> None:
    trained.begin(4)
    x = digits.images[:4]
    search = square(ThreatModel(norm, 0.5), n_queries=3)
    found = run(search, Undecided(trained), x, torch.zeros(4, dtype=torch.long), draws(4))
    assert not found.broken.any()
    assert torch.equal(found.images, x)
