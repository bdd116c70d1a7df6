"""Quick copies: the same function, gradients that may be rough, and nothing else changed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustgen.classifiers.base import Classifier, PlainClassifier
from robustgen.classifiers.quick import bfloat16_gradients, quick_copy
from robustgen.classifiers.softmax import Softmax

SHAPE = (3, 16, 16)


class Basic(nn.Module):
    """A block with its activations after the sums, as functions."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.skip = nn.Sequential()
        if stride != 1:
            self.skip = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(out)) + self.skip(x))


class Post(nn.Module):
    """A small ResNet of such blocks, each of whose norms follows a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.layers = nn.Sequential(Basic(16, 16, 1), Basic(16, 32, 2))
        self.linear = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(functional.relu(self.bn(self.conv(x))))
        return self.linear(functional.avg_pool2d(out, 8).flatten(1))


def with_statistics(model: Classifier) -> Classifier:
    """In evaluation mode, with running means and weights of norms that are not 0 and 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    for name, weight in model.named_parameters():
        if name.endswith("branch.5.weight"):  # begins at 0: then the branch would not be tested
            nn.init.kaiming_normal_(weight)
    return model.eval().requires_grad_(False)


def post() -> Classifier:
    return with_statistics(PlainClassifier(Post(), 10, SHAPE))


def pre() -> Classifier:
    return with_statistics(Softmax(10, SHAPE, width=8, blocks=(1, 1), norm="batch"))


def plain(module: nn.Module, shape: tuple[int, int, int] = (1, 8, 8)) -> Classifier:
    return PlainClassifier(module, 10, shape).eval().requires_grad_(False)


def gradient(model: Classifier, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of a difference of two of them."""
    x = x.clone().requires_grad_()
    logits = model.logits(x)
    return logits.detach(), torch.autograd.grad((logits[:, 0] - logits[:, 1]).sum(), x)[0]


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("make", [post, pre])
def test_logits_are_the_models(make) -> None:
    model, x = make(), torch.rand(6, *SHAPE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quick = quick_copy(model, x)
    for n in (6, 1, 4):
        torch.testing.assert_close(quick.logits(x[:n]), model.logits(x[:n]), rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient(quick, x)[1], gradient(model, x)[1], rtol=1e-3, atol=1e-5)
    # what was there stays as it was
    assert {type(m) for m in model.modules()} & {nn.Conv2d}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(p.requires_grad for p in quick.parameters())


def test_no_norm_is_left_that_follows_a_convolution_alone() -> None:
    x = torch.rand(4, *SHAPE)
    assert norms(post()) == 6
    assert norms(quick_copy(post(), x)) == 0
    # of ours, those at a block's beginning follow a sum or a branching
    model = pre()
    assert norms(model) == 5
    assert norms(quick_copy(model, x)) == 3


class Untraceable(nn.Module):
    """Looks at the numbers, which a trace cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, 1, 1)
        self.bn = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        if float(x.mean()) < 0:
            return torch.zeros(len(x), 10)
        return self.head(self.bn(self.conv(x)).flatten(1))


class TraceDeceives(nn.Module):
    """Can be traced, but the trace is of one batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, 1, 1)
        self.bn = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 64, 10)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        scale = 2.0 if self.calls == 1 else 1.0  # the first call, which is the trace, is another function
        return scale * self.head(self.bn(self.conv(x)).flatten(1))


@pytest.mark.parametrize("kind", [Untraceable, TraceDeceives])
def test_a_net_that_cannot_be_folded_is_copied_as_it_is(kind: type[nn.Module]) -> None:
    model, x = with_statistics(plain(kind())), torch.rand(5, 1, 8, 8)
    model.logits(x)  # a first call
    if kind is TraceDeceives:
        model.module.calls = 0
    quick = quick_copy(model, x)
    for _ in range(2):
        model.logits(x), quick.logits(x)
    torch.testing.assert_close(quick.logits(x), model.logits(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [post, pre])
def test_low_gradients_are_near_and_logits_the_same_bits(make) -> None:
    x = torch.rand(6, *SHAPE)
    quick = quick_copy(make(), x)
    logits, exact = gradient(quick, x)
    with bfloat16_gradients(quick):
        low_logits, low = gradient(quick, x)
        with torch.no_grad():
            assert torch.equal(quick.logits(x), logits)
    assert torch.equal(low_logits, logits)
    assert not torch.equal(low, exact), "these are float32's"
    assert low.dtype == torch.float32
    cosine = functional.cosine_similarity(low.flatten(1), exact.flatten(1))
    assert (cosine > 0.99).all()
    assert torch.equal(gradient(quick, x)[1], exact)


def test_low_gradients_end_with_their_block_after_an_error_too() -> None:
    x = torch.rand(4, *SHAPE)
    quick = quick_copy(post(), x)
    exact = gradient(quick, x)[1]
    with pytest.raises(ZeroDivisionError), bfloat16_gradients(quick):
        raise ZeroDivisionError
    assert torch.equal(gradient(quick, x)[1], exact)


def test_every_kind_of_convolution_has_its_low_gradient() -> None:
    """Strides, groups, dilation and padding of other modes."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4), nn.Conv2d(8, 8, 3, padding=2, dilation=2),
        nn.Conv2d(8, 8, 3, padding="same"), nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(8, 6, (1, 3)), nn.Flatten(), nn.Linear(6 * 4 * 2, 10),
    )  # fmt: skip
    model, x = plain(net, (4, 8, 8)), torch.rand(5, 4, 8, 8)
    quick = quick_copy(model, x)
    exact = gradient(model, x)[1]
    with bfloat16_gradients(quick):
        logits, low = gradient(quick, x)
    torch.testing.assert_close(logits, model.logits(x), rtol=0, atol=1e-5)
    assert (functional.cosine_similarity(low.flatten(1), exact.flatten(1)) > 0.99).all()
    assert low.norm() == pytest.approx(float(exact.norm()), rel=0.02)


def test_a_second_derivative_of_low_gradients_is_an_error() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
    x = torch.rand(3, 1, 8, 8)
    quick = quick_copy(plain(net), x)

    def second() -> Tensor:
        point = x.clone().requires_grad_()
        first = torch.autograd.grad(quick.logits(point)[:, 0].sum(), point, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), point)[0]

    assert torch.isfinite(second()).all()
    with (
        bfloat16_gradients(quick),
        pytest.raises(RuntimeError, match=r"to not have been used|differentiate twice"),
    ):
        second()


class Viewing(nn.Module):
    """Flattens by ``view``, which takes pictures in torch's usual layout only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(4 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.conv(x))
        return self.head(out.view(out.size(0), -1))


class Attention(nn.Module):
    """A transformer's layer, which reads the weights of its linear layers itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x[:, 0]).flatten(1))


class Tied(nn.Module):
    """Uses a layer's weights without the layer, where no trace can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(x.flatten(1)) if float(x.mean()) > -1 else x
        return self.head(torch.tanh(hidden) @ self.layer.weight)


class Clamped(nn.Module):
    """Finds its scale without gradients, which a trace loses, and so has a gradient that a trace has not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(144, 10)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.mean()
        return self.head(self.norm(self.conv(x / scale)).flatten(1))


@pytest.mark.parametrize("kind", [Viewing, Attention, Tied, Clamped])
def test_what_users_write_is_attacked_all_the_same(kind: type[nn.Module]) -> None:
    model, x = plain(kind()), torch.rand(4, 1, 8, 8)
    quick = quick_copy(model, x)
    torch.testing.assert_close(quick.logits(x), model.logits(x), rtol=0, atol=1e-5)
    exact = gradient(model, x)[1]
    torch.testing.assert_close(gradient(quick, x)[1], exact, rtol=1e-3, atol=1e-5)
    with bfloat16_gradients(quick):
        low = gradient(quick, x)[1]
    assert (functional.cosine_similarity(low.flatten(1), exact.flatten(1)) > 0.99).all()


class Uncopied(nn.Module):
    """Holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)
        self.pending = (i for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


class Blind(nn.Module):
    """Computes without gradients, which a trace does not: they are in the copy alone."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.head(x.flatten(1))


class Counting(nn.Module):
    """Answers in whole numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1)[:, :10] * 9).long()


@pytest.mark.parametrize("kind", [Blind, Counting])
def test_a_copy_with_other_gradients_or_without_a_spread_is_no_error(kind: type[nn.Module]) -> None:
    model, x = plain(kind()), torch.rand(4, 1, 8, 8)
    quick = quick_copy(model, x)
    assert quick is None or not quick.logits(x.requires_grad_()).requires_grad


def test_a_net_that_cannot_be_copied_has_no_quick_copy() -> None:
    assert quick_copy(plain(Uncopied()), torch.rand(4, 1, 8, 8)) is None
