"""Scores that are stored beside the logits: closed forms, and rows that do not depend on chunks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustgen import data
from robustgen.classifiers.base import Classifier, PlainClassifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.evaluation import Evaluation
from robustgen.metrics.rows import to_rows
from robustgen.perturb import Identity
from robustgen.pilot import Kernels
from robustgen.scores import SCORES, Score, read_scores
from robustgen.store import Chunk
from robustgen.worker import Worker

SHAPE = (1, 8, 8)
S = 0.3


class TwoGaussians(Classifier):
    """An exact mixture of two isotropic Gaussians of deviation S around pictures of 0.3 and of 0.7."""

    num_classes, input_shape, density = 2, SHAPE, "exact"

    def log_joint(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        means = torch.tensor([0.3, 0.7]).view(1, 2, 1)
        return -(x.flatten(1)[:, None] - means).square().sum(2) / (2 * S**2)


def fixed(model: Classifier, batch: int = 8) -> FixedBatch:
    return FixedBatch(model.eval(), batch)


def test_the_gradient_of_a_mixture_is_its_closed_form() -> None:
    x = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    model = TwoGaussians()
    weight = model.log_joint(x).double().softmax(1)
    pull = sum(weight[:, [k]] * (mean - x.double().flatten(1)) for k, mean in enumerate((0.3, 0.7)))
    found = SCORES["gradient"]()(fixed(model), x)
    assert found["gradient"].tolist() == pytest.approx((-(pull / S**2).norm(dim=1)).tolist(), rel=1e-5)


def test_what_a_model_or_a_picture_does_not_have_is_left_out() -> None:
    plain = fixed(PlainClassifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 10, SHAPE))
    x = torch.rand(3, *SHAPE)
    scores = [make() for make in SCORES.values()]
    assert [set(dict(row)) for row in read_scores(scores, plain, x) or []] == [{"complexity"}] * 3
    assert read_scores([SCORES["gradient"]()], plain, x) is None
    assert read_scores([], plain, x) is None
    colour = fixed(PlainClassifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), 10, (3, 8, 8)))
    assert set(SCORES["chroma"]()(colour, torch.rand(2, 3, 8, 8))) == {"chroma"}


def rows_of(scores: tuple[Score, ...], chunks: list[tuple[int, int]]) -> dict[str, np.ndarray]:
    """The scores of the first digits, read through the worker in these chunks."""
    evaluation = Evaluation("clean", "clean", "digits", "test", 400, {}, Identity(), scores=scores)
    worker = Worker(TwoGaussians(), [evaluation], source="digits", seed=0, kernels=Kernels(16))
    parts = [to_rows(worker(Chunk("clean", *chunk)).rows).scores for chunk in chunks]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_scores_are_stored_and_do_not_depend_on_chunks() -> None:
    scores = tuple(make() for make in SCORES.values())
    whole = rows_of(scores, [(0, 32)])
    assert set(whole) == {"gradient", "complexity"}
    for name, values in rows_of(scores, [(0, 5), (5, 12), (12, 32)]).items():
        assert np.array_equal(values, whole[name])
    x = data.load("digits").images[:32]
    assert np.array_equal(whole["gradient"], SCORES["gradient"]()(fixed(TwoGaussians(), 16), x)["gradient"])


def test_rows_without_scores_have_none() -> None:
    evaluation = Evaluation("clean", "clean", "digits", "test", 400, {}, Identity())
    worker = Worker(TwoGaussians(), [evaluation], source="digits", seed=0, kernels=Kernels(16))
    table = worker(Chunk("clean", 0, 4)).rows
    assert table["scores"].null_count == 4
    assert to_rows(table).scores == {}
