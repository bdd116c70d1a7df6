"""One batch size, and what is counted."""

import pytest
import torch
from contract_models import InPlace, TwoGaussians

from robustgen.classifiers.base import PlainClassifier
from robustgen.classifiers.fixed_batch import FixedBatch, serving


def test_fixed_batch_answers_in_the_precision_of_the_pictures():
    model, x = FixedBatch(PlainClassifier(InPlace(), 4, (1, 2, 2)), 2), torch.rand(3, 1, 2, 2)
    assert model.logits(x).dtype == torch.float32
    assert model.logits(x.double()).dtype == torch.float64


def test_fixed_batch_pads_and_counts_each_sample():
    seen = []
    inner = TwoGaussians()
    joint = inner.log_joint
    inner.log_joint = lambda x, sigma=None: seen.append(len(x)) or joint(x, sigma)
    model = FixedBatch(inner, 3)
    x, sigma = torch.rand(4, 1, 2, 2), torch.tensor([0.1, 0.2, 0.3, 0.4])
    model.begin(4)
    torch.testing.assert_close(model.log_joint(x, sigma), joint(x, sigma))
    assert seen == [3, 3]
    with serving(model, torch.tensor([1, 3])):
        model.logits(x[[1, 3]].requires_grad_())
    assert model.forwards.tolist() == [1, 2, 1, 2]
    assert model.backwards.tolist() == [0, 1, 0, 1]


def test_fixed_batch_pads_to_the_next_size_that_is_known_to_be_the_same():
    seen = []
    inner = TwoGaussians()
    joint = inner.log_joint
    inner.log_joint = lambda x, sigma=None: seen.append(len(x)) or joint(x, sigma)
    x = torch.rand(11, 1, 2, 2)
    for sizes, calls in (
        ((), [8, 8]),
        ([2, 4], [8, 4]),
        ([4], [8, 4]),
        ([2], [8, 8]),
        (range(1, 9), [8, 3]),
    ):
        seen.clear()
        torch.testing.assert_close(FixedBatch(inner, 8, sizes=sizes).logits(x), joint(x))
        assert seen == calls, sizes
    seen.clear()
    FixedBatch(inner, 8, sizes=[2, 4]).logits(x[:1])
    assert seen == [2]


def test_the_quick_copy_is_called_at_the_same_sizes_and_counted_in_the_same_place():
    seen = []
    inner, quick = TwoGaussians(), TwoGaussians()
    joint = quick.log_joint
    quick.log_joint = lambda x, sigma=None: seen.append(len(x)) or joint(x, sigma)
    model = FixedBatch(inner, 8, quick=quick, sizes=[4])
    model.begin(5)
    x = torch.rand(3, 1, 2, 2)
    with serving(model, torch.tensor([4, 0, 2])):
        model.quick.logits(x.requires_grad_())
        with serving(model, torch.tensor([0])):  # among those served: the row 4
            model.logits(x[:1].detach())
        model.quick.logits(x.detach())
    assert seen == [4, 4]
    assert model.forwards.tolist() == [2, 0, 2, 0, 3]
    assert model.backwards.tolist() == [1, 0, 1, 0, 1]
    model.begin(3)
    model.quick.logits(x.detach())
    assert model.forwards.tolist() == [1, 1, 1]


def test_serving_ends_after_an_error_and_costs_are_shared_where_nobody_says_who():
    model = FixedBatch(TwoGaussians(), 8, quick=TwoGaussians())
    model.begin(4)
    with pytest.raises(ZeroDivisionError), serving(model, torch.tensor([1])):
        raise ZeroDivisionError
    model.logits(torch.rand(2, 1, 2, 2))
    model.quick.logits(torch.rand(2, 1, 2, 2))
    assert model.forwards.tolist() == [1, 1, 1, 1]
    unbegun = FixedBatch(TwoGaussians(), 8)
    with serving(unbegun, torch.tensor([1])):
        assert unbegun.logits(torch.rand(2, 1, 2, 2)).shape == (2, 2)
