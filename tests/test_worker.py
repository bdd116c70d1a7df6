"""Verdicts on stochastic models: fresh draws, as many as are said, counted as they fall."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from robustgen import attacks, data
from robustgen.classifiers.base import Classifier, PlainClassifier
from robustgen.config import AttackSpec
from robustgen.draws import Draws
from robustgen.errors import UserError
from robustgen.evaluation import Evaluation
from robustgen.metrics import verdicts
from robustgen.metrics.rows import Rows, to_rows
from robustgen.perturb import Attack, Identity, Perturbation, Perturbed
from robustgen.pilot import Kernels
from robustgen.store import Chunk
from robustgen.threat import ThreatModel
from robustgen.types import VERDICT_DRAWS
from robustgen.worker import ChunkOutput, Worker

SHAPE, N = (1, 8, 8), 256
SHARES = torch.tensor([0.05, 0.3, 0.6, 0.9, 0.99])


def known() -> tuple[Tensor, Tensor]:
    """The class that the models below favour at each test picture, right for most, and how often."""
    test, train = data.load("digits"), data.load("digits", "train")
    means = torch.stack([train.images[train.labels == k].mean(0) for k in range(10)]).flatten(1)
    favoured = torch.cdist(test.images.flatten(1), means).argmin(1)
    return favoured, SHARES[torch.arange(len(test)) % len(SHARES)]


class Coin(nn.Module):
    """Answers the favoured class with the picture's own probability, else the next one."""

    def __init__(self) -> None:
        super().__init__()
        both = zip(*(part.tolist() for part in known()), strict=True)
        pictures = [picture.numpy().tobytes() for picture in data.load("digits").images]
        self.known = dict(zip(pictures, both, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        found = [self.known[picture.numpy().tobytes()] for picture in x]
        favoured, share = (torch.tensor(part) for part in zip(*found, strict=True))
        answer = torch.where(self.uniform(len(x)) < share, favoured, (favoured + 1) % 10)
        return 3 * nn.functional.one_hot(answer, 10).float()

    def uniform(self, n: int) -> Tensor:
        return torch.rand(n)


class OwnGenerator(Coin, Classifier):
    """The same as a Classifier that declares itself stochastic, with a generator of its own."""

    num_classes, input_shape, stochastic = 10, SHAPE, True

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()

    def reseed(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return Coin.forward(self, x)

    def uniform(self, n: int) -> Tensor:
        return torch.rand(n, generator=self.generator)


MODELS = {"global generator": lambda: PlainClassifier(Coin(), 10, SHAPE), "own generator": OwnGenerator}


def read(
    model: Classifier, perturbation: Perturbation, n: int = N, *, start: int = 0, stochastic: bool = True
) -> ChunkOutput:
    evaluation = Evaluation("it", "attack", "digits", "test", n, {}, perturbation=perturbation)
    worker = Worker(
        model, [evaluation], source="digits", seed=0, kernels=Kernels(64),
        stochastic=stochastic,
    )  # fmt: skip
    return worker(Chunk("it", start, n))


@pytest.fixture(scope="module", params=MODELS)
def drawn(request: pytest.FixtureRequest) -> Rows:
    return to_rows(read(MODELS[request.param](), Identity()).rows)


def test_the_rows_count_the_right_draws_as_they_fall(drawn: Rows) -> None:
    favoured, share = (part[:N].numpy() for part in known())
    assert (drawn.draws == VERDICT_DRAWS).all()
    assert set(drawn.seeded_by) == {"chunk"}
    for p in SHARES.numpy():
        chosen = (favoured == drawn.labels) & (share == p)
        right, draws = int(drawn.draws_correct[chosen].sum()), int(drawn.draws[chosen].sum())
        assert draws > 30 * VERDICT_DRAWS
        interval = stats.binomtest(right, draws).proportion_ci(0.999, method="exact")
        assert interval.low <= p <= interval.high
        # c ~ Binomial(32, p) of each picture, not of their sum alone
        spread = drawn.draws_correct[chosen].var() / (VERDICT_DRAWS * p * (1 - p))
        assert 0.5 < spread < 2
    elsewhere = (favoured != drawn.labels) & ((favoured + 1) % 10 != drawn.labels)
    assert elsewhere.sum() > 5
    assert (drawn.draws_correct[elsewhere] == 0).all()


def test_the_three_verdicts_are_those_of_the_known_probabilities(drawn: Rows) -> None:
    favoured, share = (part[:N].numpy().astype(float) for part in known())
    next_one = (favoured + 1) % 10 == drawn.labels
    p = np.where(favoured == drawn.labels, share, np.where(next_one, 1 - share, 0))
    counts, m, k = np.arange(33), np.full(33, 32), verdicts.WORST_OF
    for estimator, truth in (
        (verdicts.mean, p),
        (verdicts.majority, stats.binom.sf(16, 32, p)),
        (lambda c, m: verdicts.worst_of(k, c, m), p**k),
    ):
        found = estimator(drawn.draws_correct, drawn.draws).mean()
        # the exact spread of the mean over samples, each with its own binomial distribution
        squares = stats.binom.pmf(counts, 32, p[:, None]) @ estimator(counts, m).astype(float) ** 2
        spread = np.sqrt((squares - truth**2).sum()) / N
        assert abs(found - truth.mean()) < 3.3 * spread
        assert spread < 0.01


@pytest.mark.parametrize("name", MODELS)
def test_a_chunk_that_is_computed_again_has_the_same_rows(name: str) -> None:
    torch.manual_seed(1)
    one = read(MODELS[name](), Identity(), 40)
    torch.manual_seed(2)
    model = MODELS[name]()
    state = torch.get_rng_state()
    read(model, Identity(), 80, start=40)
    assert read(model, Identity(), 40).rows == one.rows
    assert torch.equal(torch.get_rng_state(), state), "the caller's generator is left as it was"


class Lucky(Attack):
    """Asks about the clean picture again and again, and calls it broken at the first wrong answer."""

    name = "lucky"

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> Perturbed:
        wrong = torch.stack([model.logits(x).argmax(1) != y for _ in range(60)]).any(0)
        return Perturbed(x.clone(), ["lucky" if hit else None for hit in wrong.tolist()])


def test_what_one_lucky_draw_broke_is_not_broken() -> None:
    model = OwnGenerator()
    search = Lucky(ThreatModel("linf", 0.1))
    x, y = data.load("digits").images[:N], data.load("digits").labels[:N]
    believed = search(model, x, y, Draws(0, "it", np.arange(N))).broken_by
    assert believed is not None
    favoured, share = (part[:N] for part in known())
    steady = ((favoured == y) & (share == SHARES[3])).numpy()
    assert [believed[i] for i in np.flatnonzero(steady)].count("lucky") > 0.9 * steady.sum()
    rows = to_rows(read(model, search).rows)
    assert rows.correct[steady].all()
    assert rows.broken_by[steady].tolist() == [None] * steady.sum()
    assert all(stage is None for stage in rows.broken_by[rows.correct])
    assert all(stage == "lucky" for stage in rows.broken_by[~rows.correct])


class Remembered(Classifier):
    """Right, but for the one seed that the search drew from, under which it is always wrong."""

    num_classes, input_shape, stochastic = 10, SHAPE, True

    def __init__(self, of_its_own: bool) -> None:
        super().__init__()
        self.of_its_own, self.seed, self.searched = of_its_own, 0, None
        test = data.load("digits")
        pictures = [picture.numpy().tobytes() for picture in test.images]
        self.labels = dict(zip(pictures, test.labels.tolist(), strict=True))

    def reseed(self, seed: int) -> None:
        self.seed = seed

    def drawn_from(self) -> int:
        return self.seed if self.of_its_own else torch.initial_seed()

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        right = torch.tensor([self.labels[picture.numpy().tobytes()] for picture in x])
        return nn.functional.one_hot((right + (self.drawn_from() == self.searched)) % 10, 10).float()


class Overfit(Attack):
    """Finds that the model errs at the clean picture, for this draw."""

    name = "overfit"

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> Perturbed:
        inner = model.model  # type: ignore[union-attr]
        inner.searched = inner.drawn_from()  # type: ignore[union-attr, operator]
        assert not (model.logits(x).argmax(1) == y).any()
        return Perturbed(x.clone(), ["overfit"] * len(x))


@pytest.mark.parametrize("of_its_own", [True, False])
def test_the_verdict_is_drawn_from_another_seed_than_the_search(of_its_own: bool) -> None:
    rows = to_rows(read(Remembered(of_its_own), Overfit(ThreatModel("linf", 0.1)), 40).rows)
    assert (rows.draws_correct == VERDICT_DRAWS).all()
    assert rows.broken_by.tolist() == [None] * 40


def test_the_verdict_on_a_deterministic_model_is_one_forward_to_the_bit() -> None:
    net = PlainClassifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 10, SHAPE)
    rows = read(net, Identity(), 64, stochastic=False).rows
    with torch.no_grad():
        assert rows["logits"].to_pylist() == net(data.load("digits").images[:64]).tolist()
    assert set(rows["draws"].to_pylist()) == {1}
    assert set(rows["forwards"].to_pylist()) == {1.0}
    assert set(rows["seeded_by"].to_pylist()) == {"sample"}


class Hungry(PlainClassifier):
    """Runs out of memory at more than ``most`` pictures, as torch says it of the processor's."""

    most = 64

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        if len(x) > self.most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return super().logits(x)


def hungry(most: int, limit: float | None = None) -> Worker:
    torch.manual_seed(0)
    net = Hungry(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)), 10, SHAPE)
    attack = attacks.build(
        AttackSpec(kind="attack", attack="pgd", norm="linf", options={"steps": 5}), ThreatModel("linf", 0.1)
    )
    evaluation = Evaluation("it", "attack", "digits", "test", N, {}, perturbation=attack)
    worker = Worker(net, [evaluation], source="digits", seed=0, kernels=Kernels(64), limit=limit)
    for model in (net, worker.model.quick.model):  # type: ignore[union-attr]
        model.most = most
    return worker


def test_where_memory_runs_out_a_chunk_goes_on_at_half_the_batch_and_says_so() -> None:
    whole, halved = (hungry(most)(Chunk("it", 0, 64)) for most in (64, 17))
    assert (whole.batch, halved.batch) == (None, 16)
    one, other = (np.array(output.rows["logits"].to_pylist()) for output in (whole, halved))
    assert np.abs(one - other).max() < 1e-4
    assert whole.rows["draws_correct"] == halved.rows["draws_correct"]
    assert whole.rows["forwards"] == halved.rows["forwards"], "calls of tries that failed are not counted"


def test_the_next_chunk_begins_at_the_runs_batch_again() -> None:
    worker = hungry(64)
    before = worker(Chunk("it", 64, 128))
    for model in (worker.model.model, worker.model.quick.model):  # type: ignore[union-attr]
        model.most = 40
    assert worker(Chunk("it", 0, 64)).batch == 32
    for model in (worker.model.model, worker.model.quick.model):  # type: ignore[union-attr]
        model.most = 64
    assert worker(Chunk("it", 64, 128))._replace(seconds=0) == before._replace(seconds=0)


def test_memory_that_is_not_enough_for_one_picture_fails_the_chunk() -> None:
    worker = hungry(0)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        worker(Chunk("it", 0, 64))
    assert worker.model.batch == 64


def test_a_nan_in_any_answer_of_the_model_fails_the_chunk() -> None:
    class NanProb(PlainClassifier):
        def log_prob(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
            return torch.full((len(x),), torch.nan)

    model = NanProb(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 10, SHAPE)
    with pytest.raises(UserError, match="NaN from log_prob"):
        read(model, Identity(), 64, stochastic=False)
