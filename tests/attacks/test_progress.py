"""What an attack has found so far: what counts as broken, and which samples go on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustgen.attacks.progress import Progress
from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.errors import UnsupportedError


class Grey(Classifier):
    """Class 1 above the grey value 0.5; of a stochastic one, the share ``wild`` of the draws says 0 there."""

    num_classes, input_shape = 2, (1, 1, 1)

    def __init__(self, wild: float | None = None) -> None:
        super().__init__()
        self.stochastic = wild is not None
        self.wild = wild or 0.0

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        level = x.flatten(1)[:, 0] - 0.5
        if self.stochastic:
            draws = torch.linspace(0, 1, 32).repeat_interleave(len(x) // 32)
            level = torch.where((draws < self.wild) & (level > 0), -0.1 * level, level)
        return torch.stack([-level, level], 1)


def greys(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


Y = torch.tensor([0, 0, 1])


def test_samples_that_are_wrong_already_are_not_attacked_and_hits_leave() -> None:
    x = greys(0.2, 0.3, 0.1)
    progress = Progress(Grey(), x, Y)
    assert progress.remaining().tolist() == [0, 1]
    progress.judge(torch.tensor([0, 1]), greys(0.4, 0.9), "first")
    assert progress.remaining().tolist() == [0]
    assert torch.equal(progress.images, greys(0.2, 0.9, 0.1))
    progress.add_hits(torch.tensor([0]), greys(0.6), "second")
    assert progress.remaining().tolist() == []
    assert progress.broken_by == ["second", "first", None]


def test_a_stochastic_sample_goes_on_until_hardly_any_draw_is_right() -> None:
    rows = torch.tensor([0])
    half = Progress(Grey(0.4), greys(0.2, 0.3, 0.1), Y)
    assert half.remaining().tolist() == [0, 1, 2], "one draw of the clean image decides nothing"
    half.judge(rows, greys(0.9), "first")
    assert half.broken_by[0] == "first"
    assert 0 in half.remaining()
    half.judge(rows, greys(0.8), "second")
    assert half.broken_by[0] == "first", "a lower margin is no better image"
    assert torch.equal(half.images[:1], greys(0.9))
    few = Progress(Grey(0.1), greys(0.2, 0.3, 0.1), Y)
    few.judge(rows, greys(0.9), "first")
    assert few.remaining().tolist() == [1, 2]


def test_calls_are_counted_for_the_rows_that_are_judged() -> None:
    model = FixedBatch(Grey(), 4, sizes=(1, 2, 3, 4))
    model.begin(3)
    Progress(model, greys(0.2, 0.3, 0.1), Y).judge(torch.tensor([1]), greys(0.9), "first")
    assert model.forwards.tolist() == [1, 2, 1]


def test_a_model_of_one_class_is_an_error() -> None:
    model = Grey()
    model.num_classes = 1
    with pytest.raises(UnsupportedError, match="one class"):
        Progress(model, greys(0.2, 0.3, 0.1), Y)
