"""The pilot: what it refuses, which batch sizes it finds, and when it takes bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustgen import pilot as module
from robustgen.classifiers import quick
from robustgen.classifiers.base import Classifier, PlainClassifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.errors import UserError
from robustgen.pilot import (
    Kernels,
    batch_dependence,
    best_time,
    choose_kernels,
    gpu_share,
    is_random,
    share_of,
)

GB = 1 << 30


def net(side: int = 8) -> PlainClassifier:
    layers = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * side**2, 10))
    return PlainClassifier(layers, 10, (1, side, side)).eval().requires_grad_(False)


class BySize(Classifier):
    """Logits that differ in the last bits by the batch's size, unless it is a multiple of 16."""

    num_classes, input_shape = 10, (1, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return self.layer(x.flatten(1)) * (1.0 if len(x) % 16 == 0 else 1 + 2**-20)


def test_an_unknown_precision_is_an_error() -> None:
    with pytest.raises(UserError, match="unknown precision"):
        choose_kernels(net(), torch.rand(16, 1, 8, 8), "fp16")


def processor(monkeypatch: pytest.MonkeyPatch, *, native: bool) -> None:
    """One that computes in bfloat16, or only emulates it."""
    for place in (module, quick):
        monkeypatch.setattr(place, "native_bfloat16", lambda device: native)


@pytest.fixture(autouse=True)
def _with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, native=True)


def test_where_bfloat16_is_emulated_asking_for_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, native=False)
    with pytest.raises(UserError, match="does not compute in bfloat16 natively") as caught:
        choose_kernels(net(), torch.rand(16, 1, 8, 8), "bf16")
    assert "take float32" in str(caught.value)


@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_where_bfloat16_is_emulated_no_gradient_is_taken_in_it(
    monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    pictures: list[int] = []
    original = quick._BFloat16Convolution.apply

    def low(x: Tensor, *layer: Tensor) -> Tensor:
        pictures.append(len(x))
        return original(x, *layer)

    monkeypatch.setattr(quick._BFloat16Convolution, "apply", low)
    tried = {}
    for native in (True, False):
        processor(monkeypatch, native=native)
        pictures.clear()
        assert choose_kernels(net(40), torch.rand(32, 1, 40, 40), precision).sizes
        tried[native] = [*pictures]
    assert tried[False] == [1], "one picture, to see whether the layers bear it"
    assert (max(tried[True]) == 32) == (precision == "auto")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_precision_that_is_asked_for_is_taken(precision: str) -> None:
    assert choose_kernels(net(), torch.rand(16, 1, 8, 8), precision).precision == precision


@pytest.mark.parametrize(
    ("side", "gain", "precision"),
    [(8, 9.0, "float32"), (40, 9.0, "bf16"), (40, 1.1, "float32"), (40, 0.0, "float32")],
)
def test_auto_takes_bfloat16_where_it_is_worth_it(
    monkeypatch: pytest.MonkeyPatch, side: int, gain: float, precision: str
) -> None:
    """On pictures of more than 1,024 values, from 1.15 times on."""
    monkeypatch.setattr(module, "_speedup", lambda copied, pictures: gain)
    assert choose_kernels(net(side), torch.rand(8, 1, side, side), "auto").precision == precision


def test_sizes_are_those_with_the_same_bits() -> None:
    model = BySize().eval().requires_grad_(False)
    x = torch.rand(64, 1, 8, 8)
    assert choose_kernels(model, x, "float32") == Kernels(
        64, "cpu", torch.get_num_threads(), "float32", [16, 32]
    )
    for size in (3, 16, 20, 50):
        fixed = FixedBatch(model, 64, sizes=[16, 32])
        assert torch.equal(fixed.logits(x[:size]), model.logits(x)[:size])


def test_gain_is_a_ratio_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([3.0, 1.5])
    monkeypatch.setattr(module, "_gradient_seconds", lambda copied, pictures: next(times))
    assert module._speedup(net(), torch.rand(8, 1, 8, 8)) == 2.0


@pytest.mark.parametrize(("shared", "taken"), [(0.0, True), (100.0, False)])
def test_gradients_of_a_lead_decide_since_a_logits_own_may_be_all_shared_part(
    monkeypatch: pytest.MonkeyPatch, shared: float, taken: bool
) -> None:
    """Rounding to bfloat16 leaves each logit's gradient as good as it was, and their difference noise."""
    torch.manual_seed(0)
    layer = nn.Linear(1600, 10)
    layer.weight.data += shared * torch.randn(1600)
    model = PlainClassifier(nn.Sequential(nn.Flatten(), layer), 10, (1, 40, 40)).eval().requires_grad_(False)
    times = iter([3.0, 1.0])
    monkeypatch.setattr(module, "_gradient_seconds", lambda copied, pictures: next(times))
    found = choose_kernels(model, torch.rand(8, 1, 40, 40), "auto")
    assert (found.precision == "bf16") == taken


class NoGradient(Classifier):
    num_classes, input_shape = 10, (1, 40, 40)

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return x.detach().flatten(1)[:, :10]


def test_a_model_without_gradients_has_sizes_and_no_low_precision() -> None:
    found = choose_kernels(NoGradient().eval(), torch.rand(24, 1, 40, 40), "auto")
    assert (found.precision, found.sizes) == ("float32", [12])


class Later(Classifier):
    """The second half of a batch of 32 or more gets other bits in parts of 16 than in the whole."""

    num_classes, input_shape = 10, (1, 8, 8)

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        z = x.flatten(1)[:, :10]
        late = (torch.arange(len(x)) >= 16)[:, None]
        return torch.where(late, z * (1 + 2**-20), z)


def test_rows_of_every_part_are_compared() -> None:
    assert choose_kernels(Later().eval(), torch.rand(64, 1, 8, 8), "float32").sizes == []


def test_a_small_batch_has_no_parts() -> None:
    assert choose_kernels(net(), torch.rand(15, 1, 8, 8), "float32").sizes == []


class Fails(Classifier):
    num_classes, input_shape = 10, (1, 40, 40)

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        raise ZeroDivisionError


def test_a_model_that_fails_does_not_stop_the_others() -> None:
    found = choose_kernels(Fails().eval(), torch.rand(16, 1, 40, 40), "auto")
    assert (found.precision, found.sizes) == ("float32", [])


class OneSeed(nn.Module):
    """Noise "made reproducible": by one seed for the whole batch, so that it belongs to places in it."""

    def __init__(self, spread: float) -> None:
        super().__init__()
        self.layer, self.spread = nn.Linear(64, 10), spread

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        return self.layer((x + self.spread * noise).flatten(1))


def test_noise_that_belongs_to_a_place_in_the_batch_is_found_out() -> None:
    x = torch.rand(16, 1, 8, 8)
    assert batch_dependence(PlainClassifier(OneSeed(0.5), 10, (1, 8, 8)), x) > 0
    assert batch_dependence(PlainClassifier(OneSeed(0.0), 10, (1, 8, 8)), x) == 0


def test_a_model_that_takes_no_few_pictures_is_not_judged_by_them() -> None:
    class Whole(OneSeed):
        def forward(self, x: Tensor) -> Tensor:
            assert len(x) == 16
            return super().forward(x)

    assert batch_dependence(PlainClassifier(Whole(0.5), 10, (1, 8, 8)), torch.rand(16, 1, 8, 8)) == 0


def test_a_random_model_is_caught() -> None:
    x = torch.rand(64, 1, 8, 8)
    assert is_random(
        PlainClassifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout()), 10, (1, 8, 8)), x
    )
    assert not is_random(PlainClassifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 10, (1, 8, 8)), x)


def test_a_model_that_fails_on_some_pictures_is_judged_random_or_not_by_the_others() -> None:
    x = torch.rand(64, 1, 8, 8)

    class FailsOnMany(PlainClassifier):
        def __init__(self, module: nn.Module, at_most: int) -> None:
            super().__init__(module, 10, (1, 8, 8))
            self.at_most = at_most

        def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
            if len(x) > self.at_most:
                raise MemoryError
            return super().logits(x)

    still = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert is_random(FailsOnMany(nn.Sequential(still, nn.Dropout()), 5), x)
    assert not is_random(FailsOnMany(still, 5), x)
    with pytest.raises(UserError, match="fails on every part"):
        is_random(FailsOnMany(still, 0), x)


def test_a_nan_does_not_make_a_model_random() -> None:
    class Glitch(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            logits = x.flatten(1)[:, :10].clone()
            logits[3, self.calls % 2] = torch.nan
            return logits

    assert not is_random(PlainClassifier(Glitch(), 10, (1, 8, 8)), torch.rand(8, 1, 8, 8))


def test_a_gpu_is_waited_for_before_and_after_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: order.append(f"wait for {device}"))
    best_time(lambda: order.append("call"), torch.device("cuda"))
    assert order == 4 * ["wait for cuda", "call", "wait for cuda"]
    order.clear()
    best_time(lambda: order.append("call"), torch.device("cpu"))
    assert order == 4 * ["call"]


@pytest.mark.parametrize(
    ("peak", "total", "share"),
    [(1 * GB, 80 * GB, 1 / 8), (10 * GB, 80 * GB, 1 / 5), (30 * GB, 80 * GB, 1), (90 * GB, 80 * GB, 1)],
)
def test_a_gpu_is_shared_by_as_many_as_it_holds(peak, total, share):
    assert share_of(peak, total) == share


def test_on_a_processor_no_gpu_is_asked_for():
    assert gpu_share(None, torch.zeros(1)) == 0
