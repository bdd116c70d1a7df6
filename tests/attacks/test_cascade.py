"""Cascades: what each stage attacks, which stage is named, and the audit of saved work."""

from __future__ import annotations

import pytest
import torch
from linear_oracle import away_from_the_box, model_and_pictures
from torch import Tensor

from robustgen.attacks import build
from robustgen.attacks.apgd import apgd
from robustgen.attacks.autoattack import AutoAttack, SquareAttack
from robustgen.attacks.cascade import Cascade, Stage
from robustgen.attacks.search import Search, Start, State
from robustgen.attacks.victim import Answer, Victim
from robustgen.audit import AUDIT, audited_indices
from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.classifiers.quick import quick_copy
from robustgen.config import AttackSpec
from robustgen.draws import Draws
from robustgen.threat import ThreatModel
from robustgen.verdict import fresh_verdict, seeded


class Up(Search[State]):
    """Asks about one picture: the clean one and ``much`` more of every pixel."""

    def __init__(self, much: float) -> None:
        self.much = much
        self.rows: list[int] = []

    def begin(self, start: Start, draws: Draws) -> State:
        self.rows += (start.x.mean((1, 2, 3)) * 100).round().long().tolist()
        self.drawn = draws.uniform(4)
        return State(**start.fields(), point=start.x + self.much)

    def query(self, victim: Victim, state: State) -> Answer:
        return victim.logits(state.point)

    def update(self, state: State, answer: Answer) -> None:
        state.done = torch.ones_like(state.done)


class Grey(Classifier):
    """Class 1 from the grey value 0.5 on."""

    num_classes, input_shape = 2, (1, 2, 2)

    def __init__(self, *, stochastic: bool = False) -> None:
        super().__init__()
        self.stochastic = stochastic

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        level = x.mean((1, 2, 3)) - 0.5
        return torch.stack([-level, level], 1)


class Steps(Cascade):
    name = "steps"

    def __init__(self, **searches: Search) -> None:
        super().__init__(ThreatModel("linf", 0.5), tuple(searches))
        self.searches = searches

    def stages(self, model: Classifier) -> list[Stage]:
        return [Stage(name, search) for name, search in self.searches.items()]


def greys(*values: float) -> tuple[Tensor, Tensor, Draws]:
    x = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()
    return x, torch.zeros(len(x), dtype=torch.long), Draws(0, "steps", torch.arange(len(x)))


@pytest.mark.parametrize("fixed", [True, False])
def test_each_stage_gets_what_is_left_and_names_what_it_breaks(fixed: bool) -> None:
    small, large, none = Up(0.15), Up(0.3), Up(0.01)
    x, y, draws = greys(0.10, 0.45, 0.25, 0.60, 0.40)
    model = FixedBatch(Grey(), 2) if fixed else Grey()
    if isinstance(model, FixedBatch):
        model.begin(5)
    images, broken_by, _ = Steps(first=small, second=large, third=none)(model, x, y, draws)
    # the fourth is wrong from the start: it comes back clean, and no stage is named
    assert broken_by == [None, "first", "second", None, "first"]
    torch.testing.assert_close(images.mean((1, 2, 3)), torch.tensor([0.10, 0.60, 0.55, 0.60, 0.55]))
    assert torch.equal(images[[0, 3]], x[[0, 3]])
    assert small.rows == [10, 45, 25, 40]
    assert large.rows == [10, 25]
    assert none.rows == [10]
    if isinstance(model, FixedBatch):
        # the verdict on the clean picture; then every stage its one point, a hit once more, no clean logits
        assert model.forwards.tolist() == [4, 3, 4, 1, 3]


def test_stages_draw_from_streams_of_their_own_and_samples_from_theirs() -> None:
    first, second = Up(0.01), Up(0.01)
    x, y, draws = greys(0.1, 0.2, 0.3)
    Steps(first=first, second=second)(Grey(), x, y, draws)
    assert not (first.drawn == second.drawn).any()
    before = first.drawn.clone()
    Steps(first=first)(Grey(), x[1:], y[1:], Draws(0, "steps", torch.tensor([1, 2])))
    assert torch.equal(first.drawn, before[1:])


def test_of_a_stochastic_model_all_samples_are_attacked_and_the_weakest_point_stays() -> None:
    first, second = Up(0.05), Up(0.10)
    x, y, draws = greys(0.10, 0.47, 0.60)
    images, broken_by, _ = Steps(first=first, second=second)(Grey(stochastic=True), x, y, draws)
    assert broken_by == [None, "first", "first"]
    assert second.rows == [10]
    torch.testing.assert_close(images.mean((1, 2, 3)), torch.tensor([0.20, 0.52, 0.65]))


class Fading(Classifier):
    """Class 1 the more often the lighter a picture is: half of the time at the grey value 0.5."""

    num_classes, input_shape, stochastic = 2, (1, 2, 2), True

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        level = 40 * (x.mean((1, 2, 3)) - 0.5) + torch.randn(len(x))
        return torch.stack([-level, level], 1)


def test_a_sample_that_most_draws_break_is_left_to_stages_that_break_it_by_all() -> None:
    x = torch.full((16, 1, 2, 2), 0.3)
    y, draws = torch.zeros(16, dtype=torch.long), Draws(0, "steps", torch.arange(16))
    half, whole = Up(0.22), Up(0.4)  # at 0.52 a fifth of the draws is right, at 0.7 none
    images, broken_by, _ = Steps(half=half, whole=whole)(Fading(), x, y, draws)
    assert len(whole.rows) >= 8
    stood = [i for i, name in enumerate(broken_by or ()) if name == "whole"]
    assert len(stood) == len(whole.rows)
    torch.testing.assert_close(images[stood], torch.full_like(images[stood], 0.7))


class OffTheGrid(Classifier):
    """Class 0 off the grid of 16 levels, where almost every draw has class 1."""

    num_classes, input_shape, stochastic = 2, (1, 2, 2), True

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        off = ((x * 16 - (x * 16).round()).abs().amax((1, 2, 3)) - 0.01).sign()
        return torch.stack([off, -off], 1) + 0.1 * torch.randn(len(x), 2)


def test_an_attack_gives_a_stochastic_model_no_picture_that_is_more_right_than_the_clean_one() -> None:
    x, y, draws = (
        torch.full((8, 1, 2, 2), 0.5),
        torch.zeros(8, dtype=torch.long),
        Draws(0, "a", torch.arange(8)),
    )
    found = Steps(first=Up(0.03))(OffTheGrid(), x, y, draws)
    assert torch.equal(found.images, x)
    assert found.broken_by == [None] * 8


class Root(Classifier):
    """Linear in the roots of pixels: the gradient is infinite at black pixels, NaN where they count for 0."""

    num_classes, input_shape = 3, (1, 2, 2)

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        weight = torch.tensor([[1.0, 0, 0, 0], [0.0, 1, 0, 0], [0.0, 0, 1, 0]])
        return x.flatten(1).sqrt() @ weight.T


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", ["pgd", "apgd-ce", "fab-t", "autoattack"])
def test_a_gradient_that_is_nan_at_some_pixels_is_used_at_the_others(attack: str, norm: str) -> None:
    x = torch.tensor([[0.30, 0.29, 0.0, 0.0], [0.5, 0.0, 0.49, 0.0]]).view(2, 1, 2, 2)
    options = {"n_queries": 50} if attack == "autoattack" else {}
    spec = AttackSpec.model_validate({"kind": "attack", "attack": attack, "norm": norm, "options": options})
    made = build(spec, ThreatModel(norm, 0.1))  # type: ignore[arg-type]
    found = made(Root(), x, torch.zeros(2, dtype=torch.long), Draws(0, "a", torch.arange(2)))
    assert (Root().logits(found.images).argmax(1) != 0).all()


def useless(quick: Classifier) -> Classifier:
    """The copy, with low gradients that are 0: the weights they are taken with are."""
    for module in quick.modules():
        if hasattr(module, "bfloat16_weight"):
            module.bfloat16_weight.zero_()
    return quick


def breakable(low: bool) -> tuple[FixedBatch, Tensor, Tensor, ThreatModel]:
    """A linear net whose low gradients are useless, and pictures that exact ones break at once."""
    net, plain, x, y = model_and_pictures(10)
    layer = torch.nn.Linear(64, 10)
    layer.weight.data, layer.bias.data = net.weight, -0.5 * net.weight.sum(1)
    plain.model.module = torch.nn.Sequential(torch.nn.Flatten(), layer)
    inner = plain.model.eval().requires_grad_(False)
    copied = quick_copy(inner, x[:8])
    assert copied is not None
    distance = net.distances(x, y, 1.0)
    keep = distance.argsort()[-40:]  # of those that no random start breaks
    x, y = x[keep], y[keep]
    model = FixedBatch(inner, 40, quick=useless(copied), bfloat16_gradients=low)
    model.begin(40)
    return model, x, y, ThreatModel("linf", 1.05 * float(distance[keep].amax()))


def test_the_audit_breaks_what_bfloat16_gradients_missed() -> None:
    draws = Draws(0, "aa", torch.arange(40))
    names = {}
    for low in (False, True):
        model, x, y, threat = breakable(low)
        attack = AutoAttack(threat, n_iter=10, n_queries=1)
        found = attack(model, x, y, draws)
        names[low] = found.broken_by
        wrong = model.logits(found.images).argmax(1) != y
        assert wrong.tolist() == [name is not None for name in found.broken_by]
        assert threat.contains(x, found.images).all()
    assert None not in names[False]
    assert AUDIT not in names[False]
    survivors = [i for i, name in enumerate(names[True]) if name in (None, AUDIT)]
    assert len(survivors) > 8
    examined = [survivors[k] for k in audited_indices(len(survivors))]
    assert [i for i, name in enumerate(names[True]) if name == AUDIT] == examined


def test_an_audit_only_where_gradients_are_in_bfloat16_or_jobs_end_early() -> None:
    model, x, y, threat = breakable(low=False)

    def calls(low: bool, thorough: bool) -> Tensor:
        model.bfloat16_gradients = low
        model.begin(40)
        weak = AutoAttack(ThreatModel("linf", threat.eps / 100), n_iter=2, n_queries=1, thorough=thorough)
        assert weak(model, x, y, Draws(0, "aa", torch.arange(40))).broken_by.count(None) == 40
        return model.forwards.clone()

    model.bfloat16_gradients = True
    model.begin(40)
    SquareAttack(threat, n_queries=1)(model, x, y, Draws(0, "aa", torch.arange(40)))
    assert model.forwards.max() < 6  # it takes no gradients that could be low
    full = calls(low=False, thorough=True)
    assert len(full.unique()) == 1
    for low, thorough in ((True, True), (True, False), (False, False)):
        again = calls(low, thorough)
        most = again.min()
        assert (again > most).nonzero().squeeze(1).tolist() == audited_indices(40)


def test_the_audit_repeats_what_may_have_ended_early_and_sees_the_model_as_the_stage_did() -> None:
    seen: list[tuple[str, bool]] = []

    class Watched(Victim):
        def __init__(self, model: Classifier, name: str) -> None:
            super().__init__(model)
            self.name = name

        def logits(self, x: Tensor) -> Answer:
            seen.append((self.name, self.bfloat16_gradients))
            return super().logits(x)

    stages = [
        Stage(name, Up(0.01), lambda model, name=name: Watched(model, name))
        for name in ("apgd-ce", "apgd-margin", "fab", "apgd-t", "square")
    ]
    cascade = Steps()
    cascade.stages = lambda model: stages  # type: ignore[method-assign]
    x, y, draws = greys(0.1, 0.2)
    model = FixedBatch(Grey(), 2, bfloat16_gradients=True)
    names = [stage.name for stage in stages]
    for thorough, again in ((False, names), (True, ["apgd-t"])):
        cascade.thorough = thorough
        seen.clear()
        model.begin(2)
        assert cascade(model, x, y, draws).broken_by == [None, None]
        assert seen == [(name, True) for name in names] + [(name, False) for name in again]


def test_an_audit_of_no_survivors_and_of_a_cascade_without_its_stages() -> None:
    model, _, _, threat = breakable(low=True)
    x = away_from_the_box(40)
    wrong = (model.logits(x).argmax(1) + 1) % 10
    assert (
        AutoAttack(threat, n_iter=1, n_queries=1)(model, x, wrong, Draws(0, "aa", torch.arange(40))).broken_by
        == [None] * 40
    )
    only = Steps(first=Up(0.0))
    only.searches = {"first": apgd(ThreatModel("linf", 1e-4), "ce", n_iter=1)}
    found = only(model, x, model.logits(x).argmax(1), Draws(0, "aa", torch.arange(40)))
    assert AUDIT not in found.broken_by


class Wild(Classifier):
    """Class 0, with no gradient, unless the left half is the lighter; a share of draws is off by 100 nats."""

    num_classes, input_shape, stochastic = 4, (1, 8, 8), True

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        slope = x[..., :4].mean((1, 2, 3)) - x[..., 4:].mean((1, 2, 3))
        side = torch.where(slope > 0.05, -1.0, 1.0) + 0 * slope
        usual = torch.stack([side, -side, 0 * side - 2, 0 * side - 3], 1)
        off = torch.tensor([-100.0, 100.0, 0.0, 0.0])
        return torch.where(torch.rand(len(x), 1) < self.share, off, usual)


def test_a_few_wild_draws_do_not_spare_a_stochastic_model_the_later_stages() -> None:
    x, y, draws = (
        torch.full((8, 1, 8, 8), 0.5),
        torch.zeros(8, dtype=torch.long),
        Draws(0, "aa", torch.arange(8)),
    )
    right = {}
    for share in (0.0, 0.2):
        model = FixedBatch(Wild(share).eval(), 64)
        model.begin(8)
        with seeded(model, "search", draws, x.device):
            found = AutoAttack(ThreatModel("linf", 0.1), n_iter=5, n_queries=100)(model, x, y, draws)
        assert set(found.broken_by or ()) <= {"square", None}
        assert bool((fresh_verdict(model, x, y, draws).correct > 16).all()), "the draws alone decide"
        right[share] = int((fresh_verdict(model, found.images, y, draws).correct > 16).sum())
    assert right[0.0] <= 4, "Square does not break it"
    assert right[0.2] <= right[0.0]
