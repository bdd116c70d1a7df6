"""The one contract: what every classifier of robustgen offers, and wrappers that keep to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from robustgen.errors import UnsupportedError, UserError
from robustgen.types import ConditionalNoise, Density, FixedNoise, Noise, NoNoise


def check_level(sigma: float | Tensor, levels: ConditionalNoise) -> None:
    """Raise UnsupportedError unless every ``sigma`` lies within the levels that a model was trained on."""
    if isinstance(sigma, Tensor) and not sigma.numel():
        return  # of no pictures
    lowest, highest = (float(value) for value in torch.as_tensor(sigma).detach().aminmax())
    rounding = 1 + 1e-6  # a level may come as float32
    if not (lowest * rounding >= levels.low and highest <= levels.high * rounding):  # NaN is refused too
        raise UnsupportedError(
            "sigma lies outside the noise levels that the model was trained on",
            expected=f"from {levels.low:g} to {levels.high:g}",
            got=f"{lowest:g} to {highest:g}",
            remedy="leave sigma out for a picture without noise",
        )


def trained_levels(low: float, high: float) -> ConditionalNoise:
    """The noise levels that a model is to be trained on; UserError unless 0 < low < high."""
    if not 0 < low < high < math.inf:
        raise UserError(
            "these are no noise levels to train on", expected="0 < low < high", got=f"low={low}, high={high}"
        )
    return ConditionalNoise(low, high)


def trained_noise(sigma: float) -> FixedNoise:
    """The one noise level that a model is to be trained on; UserError unless it is 0 or more."""
    if not 0 <= sigma < math.inf:
        raise UserError(
            "this is no noise level to train on", expected="a sigma of 0 or more", got=f"sigma={sigma}"
        )
    return FixedNoise(sigma)


class Denoiser(nn.Module):
    """An estimate of E[x | x + sigma n], with or without the label known.

    ``levels`` are the sigmas it was trained for; a ``sigma`` outside them is an error. One that takes
    labels says how many classes there are (``num_classes``). ``shares_classes``: whether one pass of the
    network denoises under every class, so that all of them cost what one does.
    """

    num_classes: int
    shares_classes: bool = False
    levels: ConditionalNoise
    input_shape: tuple[int, int, int]

    def denoise(self, x: Tensor, sigma: float | Tensor, y: Tensor | None = None) -> Tensor:
        """Posterior mean of the clean pictures.

        ``x``: noisy pictures (batch, channels, height, width), not clipped; ``sigma``: a float or
        (batch,); ``y``: labels (batch,) or None for the mean over labels. Returns x's shape.
        """
        raise NotImplementedError

    def denoise_pairs(self, x: Tensor, sigma: float | Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        """Posterior means (pairs, channels, height, width) of the pictures x[rows] under ``labels``,
        (pairs,) each."""
        levels = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
        return self.denoise(x[rows], levels[rows], labels)

    def forward(self, x: Tensor, sigma: float | Tensor, y: Tensor | None = None) -> Tensor:
        return self.denoise(x, sigma, y)


class Classifier(nn.Module):
    """A classifier of pictures, joint or discriminative.

    A subclass implements ``logits`` **or** ``log_joint``; the rest follows. Where it offers
    ``log_joint``, log_joint(x)[y] = log p(x, y) up to a constant and its softmax is p(y | x).

    Attributes: ``num_classes``; ``input_shape`` (channels, height, width); ``stochastic``, whether
    two calls may differ; ``density``, what log_prob is; ``noise``, the noise levels that it models;
    ``test_sigma``, the level meant by ``sigma=None``; ``calls_per_image``, how many passes of
    a network the logits of one picture cost.
    """

    num_classes: int
    input_shape: tuple[int, int, int]
    stochastic: bool = False
    density: Density | None = None
    noise: Noise = NoNoise()
    test_sigma: float | None = None
    calls_per_image: int = 1

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        """Unnormalised log p(y | x), shape (batch, classes), for pictures x in [0, 1]."""
        return self.log_joint(x, sigma)

    def log_joint(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        """log p_sigma(x, y) in nats, up to one constant at each sigma, shape (batch, classes)."""
        raise UnsupportedError(
            f"{type(self).__name__} has no log p(x, y)",
            expected="a joint or generative classifier",
            remedy="'robustgen show MODEL' says what a model offers",
        )

    def log_prob(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        """log p_sigma(x) in nats, shape (batch,); what may be said of it is in ``density``."""
        return self.log_joint(x, sigma).logsumexp(1)

    def denoise(self, x: Tensor, sigma: float | Tensor, y: Tensor | None = None) -> Tensor:
        """E[x0 | x] or E[x0 | x, y] by Tweedie's formula: x + sigma^2 grad log p_sigma(x[, y]).

        It holds for a density of noisy pictures at that sigma, so it is an error for a model
        without noise levels and outside the levels of one that has them.
        """
        self.check_sigma(sigma)
        levels = torch.as_tensor(sigma, device=x.device, dtype=x.dtype).reshape(-1, 1, 1, 1)
        return x + levels**2 * self.input_gradient(x, sigma, lambda joint: _pick(joint, y))

    def surrogate(self, x: Tensor) -> Tensor:
        """Differentiable logits that agree with ``logits`` but for a step without a useful gradient.

        Optional, for models with such a step, a purifier for one: attacks then take the gradient of
        this in place of that (BPDA, Athalye et al. 2018, arXiv:1802.00420).
        """
        raise UnsupportedError(f"{type(self).__name__} offers no stand-in for its gradient")

    def input_gradient(
        self, x: Tensor, sigma: float | Tensor | None, score: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Gradient in x of score(log_joint(x, sigma)), where ``score`` maps (batch, classes) to (batch,)."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(score(self.log_joint(x, sigma)).sum(), x)[0]

    def check_sigma(self, sigma: float | Tensor) -> None:
        """Raise UnsupportedError unless the model has a denoiser at ``sigma``."""
        if "denoise" not in self.supports or not isinstance(self.noise, ConditionalNoise):
            raise UnsupportedError(
                f"{type(self).__name__} has no denoiser: it is no density of noisy pictures",
                expected="a noise-conditional model, such as cdn",
            )
        check_level(sigma, self.noise)

    def reseed(self, seed: int) -> None:
        """Set the seed of a stochastic model's own generator; nothing to do for the others."""

    @property
    def supports(self) -> frozenset[str]:
        """Which of logits, log_joint, log_prob, denoise, surrogate work, computed from what is overridden."""
        cls = type(self)
        found = set()
        joint = cls.log_joint is not Classifier.log_joint
        if joint or cls.logits is not Classifier.logits:
            found.add("logits")
        if joint:
            found.add("log_joint")
        if joint or cls.log_prob is not Classifier.log_prob:
            found.add("log_prob")
        if cls.denoise is not Classifier.denoise or (joint and isinstance(self.noise, ConditionalNoise)):
            found.add("denoise")
        if cls.surrogate is not Classifier.surrogate:
            found.add("surrogate")
        return frozenset(found)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x)


def _pick(log_joint: Tensor, y: Tensor | None) -> Tensor:
    return log_joint.logsumexp(1) if y is None else log_joint.gather(1, y[:, None]).squeeze(1)


class PlainClassifier(Classifier):
    """Any torch.nn.Module that maps [0, 1] pictures to logits; ``stochastic`` and ``reseed`` may be its own.

    It is given a copy of the pictures: one that normalises in place would change them for all who follow.
    """

    def __init__(self, module: nn.Module, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.module = module
        self.num_classes = num_classes
        self.input_shape = input_shape
        self.stochastic = bool(getattr(module, "stochastic", False))

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return self.module(x.clone())

    def reseed(self, seed: int) -> None:
        reseed = getattr(self.module, "reseed", None)
        if reseed is not None:
            reseed(seed)


class FixedBatch(Classifier):
    """Calls a classifier at one batch size only, the last batch padded, and counts the calls.

    Kernels differ by batch size, and with them the last bits of a result: with one size, what a
    sample gets does not depend on its neighbours' number. ``forwards`` and ``backwards`` (batch,) say
    how often each sample of the batch in hand was asked about, padding left out: ``begin`` starts
    the count, and an attack that goes on with some rows only says so by ``serving``.

    ``quick`` is a copy of the model with faster kernels (quick.py), called and counted alike, or
    None; ``low`` says whether attacks take gradients of it in bfloat16. A smaller batch is padded to
    the next of ``sizes``, at which a row's bits are known to be the same as at the full one, or to that;
    with every size among them nothing is padded, which serves those who do not count on the last bits.
    """

    def __init__(
        self, model: Classifier, batch: int, *, quick: Classifier | None = None, low: bool = False,
        sizes: Sequence[int] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.model = model
        self.batch = batch
        self.low = low
        self.sizes = tuple(sizes)
        self.quick = None if quick is None else FixedBatch(quick, batch, sizes=sizes)
        self.num_classes = model.num_classes
        self.input_shape = model.input_shape
        self.stochastic = model.stochastic
        self.density = model.density
        self.noise = model.noise
        self.test_sigma = model.test_sigma
        self.begin(0)

    def resize(self, batch: int) -> None:
        """From now on at most so many pictures a call."""
        self.batch = batch
        if self.quick is not None:
            self.quick.batch = batch

    def begin(self, samples: int, device: torch.device | str = "cpu") -> None:
        """Count anew, for a batch of so many samples, on their device: there it takes no waiting."""
        self.forwards = torch.zeros(samples, dtype=torch.float64, device=device)
        self.backwards = torch.zeros_like(self.forwards)
        self._serve(torch.arange(samples, device=device))
        if self.quick is not None:
            self.quick.forwards, self.quick.backwards = self.forwards, self.backwards

    @contextmanager
    def serving(self, rows: Tensor) -> Iterator[None]:
        """Within the block, calls are for these rows alone: indices of those served so far."""
        before = self._served
        self._serve(before[rows.to(before.device)] if len(before) else before)
        try:
            yield
        finally:
            self._serve(before)

    def _serve(self, rows: Tensor) -> None:
        self._served = rows
        if self.quick is not None:
            self.quick._serve(rows)

    @property
    def supports(self) -> frozenset[str]:
        return self.model.supports

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return self._call(self.model.logits, x, sigma)

    def log_joint(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return self._call(self.model.log_joint, x, sigma)

    def log_prob(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return self._call(self.model.log_prob, x, sigma)

    def denoise(self, x: Tensor, sigma: float | Tensor, y: Tensor | None = None) -> Tensor:
        self._count(self.backwards, len(x))  # a denoiser by Tweedie's formula costs a backward pass
        return self._call(self.model.denoise, x, sigma, y)

    def surrogate(self, x: Tensor) -> Tensor:
        return self._call(self.model.surrogate, x)

    def reseed(self, seed: int) -> None:
        self.model.reseed(seed)
        if self.quick is not None:
            self.quick.reseed(seed)

    def _call(self, method: Callable[..., Tensor], x: Tensor, *per_sample: float | Tensor | None) -> Tensor:
        self._count(self.forwards, len(x))
        if x.requires_grad and torch.is_grad_enabled():
            self._count(self.backwards, len(x))  # an upper bound: a caller may leave a graph unused
        parts = []
        for start in range(0, len(x), self.batch):
            piece = slice(start, start + self.batch)
            rows = len(x[piece])
            extra = [self._pad(a[piece]) if isinstance(a, Tensor) and a.ndim else a for a in per_sample]
            # in the pictures' precision: what follows computes with both
            parts.append(method(self._pad(x[piece]), *extra)[:rows].to(x.dtype))
            # a NaN that is asked about, by an outside attack perhaps, is not the model's own
            if bool(parts[-1].isnan().any()) and not bool(x.isnan().any()):
                raise UserError(
                    f"the model returned NaN from {method.__name__}",
                    remedy="'robustgen check MODEL' says more",
                )
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def count_backward(self, rows: int) -> None:
        """Count one more backward pass through the last call, of so many rows."""
        self._count(self.backwards, rows)

    def _count(self, tally: Tensor, calls: int) -> None:
        # An outside attack drops rows without a word: then the calls are shared among all it was given.
        if len(tally):
            share = tally.new_full((len(self._served),), calls / len(self._served))
            tally.index_add_(0, self._served, share)  # a sample may be served at several points at once

    def _pad(self, rows: Tensor) -> Tensor:
        missing = min([self.batch, *(size for size in self.sizes if size >= len(rows))]) - len(rows)
        padding = rows[-1:].detach().expand(missing, *rows.shape[1:])
        return torch.cat([rows, padding]) if missing else rows


def plain(model: Classifier) -> Classifier:
    """The classifier itself, where it may be called at a fixed batch size."""
    return model.model if isinstance(model, FixedBatch) else model


def serving(model: Classifier, rows: Tensor) -> AbstractContextManager[None]:
    """``model.serving(rows)`` where the model counts its calls."""
    return model.serving(rows) if isinstance(model, FixedBatch) else nullcontext()


def threads_for(shape: tuple[int, int, int]) -> int:
    """How many threads serve pictures of this shape (channels, height, width) best, in torch's kernels.

    On pictures of a few hundred values a second thread costs more in waiting than it computes.
    """
    return 1 if math.prod(shape) <= 1024 else torch.get_num_threads()
