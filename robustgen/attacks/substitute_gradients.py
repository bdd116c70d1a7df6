"""Gradients from elsewhere, for models whose own are obfuscated: by rounding, by noise, by a step without
one.

Each class is a Victim that answers with the model's own logits at the point and a substitute for the
gradient.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from robustgen.attacks.victim import Answer, Loss, Victim, mean_loss, repeated, without_nan
from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import unwrapped
from robustgen.classifiers.likelihood import Checkpointed
from robustgen.draws import Draws
from robustgen.types import ConditionalNoise


class SubstituteGradient(Victim):
    """Abstract: logits and loss of the point itself, as ``point`` gives them; the gradient is
    ``substitute``'s.

    ``point``: a plain Victim for a deterministic model, EOT for a stochastic one.
    """

    def __init__(self, point: Victim) -> None:
        super().__init__(point.model)
        self.point = point

    def logits(self, x: Tensor) -> Answer:
        return self.point.logits(x)

    def confirm(self, x: Tensor, y: Tensor) -> Tensor:
        return self.point.confirm(x, y)

    def gradient(self, x: Tensor, loss: Loss) -> Answer:
        logits = self.point.logits(x).logits
        return Answer(logits, loss(logits), without_nan(self.substitute(x, loss)))

    def gradients(self, x: Tensor, losses: Sequence[Loss]) -> Iterator[Answer]:
        return (self.gradient(x, loss) for loss in losses)

    def substitute(self, x: Tensor, loss: Loss) -> Tensor:
        """What the search climbs along in place of the gradient at x, of the shape of x."""
        raise NotImplementedError


class Smoothed(SubstituteGradient):
    """The gradient of the loss averaged over Gaussian noise of ``sigma`` (pixel units), from ``m`` samples.

    A noise-conditional model is given the nearest of its noise levels. If its log-joints are densities of
    noisy images, then by Tweedie's formula the gradient of the loss z_k - z_y is
    [D(x, k) - D(x, y)] / sigma^2, the difference of two denoised images. Other models see the noisy images as
    if they were clean (the attack of Salman et al. 2019, arXiv:1906.04584).
    """

    def __init__(self, point: Victim, sigma: float, m: int = 16) -> None:
        super().__init__(point)
        self.sigma, self.m = sigma, m
        noise = point.model.noise
        self.level = min(max(sigma, noise.low), noise.high) if isinstance(noise, ConditionalNoise) else None

    def substitute(self, x: Tensor, loss: Loss) -> Tensor:
        noise = self.sigma * antithetic_noise(x, self.m)
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.fast.logits(repeated(x, self.m) + noise, self.level)
            return torch.autograd.grad(mean_loss(logits, loss, self.m).sum(), x)[0]


class NES(SubstituteGradient):
    """The smoothed gradient estimated from logits alone, by differences along ``m`` / 2 random directions:
    natural evolution strategies (Wierstra et al. 2014; Ilyas et al. 2018, arXiv:1804.08598, section 2.1).

    It is not affected by what a model does to its backward pass. The loss is the mean over the noise too:
    where logits are rounded, the loss at the point itself is flat.
    """

    def __init__(self, point: Victim, sigma: float, m: int = 64) -> None:
        super().__init__(point)
        self.sigma, self.m = sigma, m

    @torch.no_grad()
    def gradient(self, x: Tensor, loss: Loss) -> Answer:
        noise = antithetic_noise(x, self.m)
        logits = self.fast.logits(repeated(x, self.m) + self.sigma * noise)
        values = torch.stack([loss(part) for part in logits.chunk(self.m)])
        slopes = (values[: self.m // 2] - values[self.m // 2 :]) / (2 * self.sigma)
        directions = noise[: len(noise) // 2].view(self.m // 2, *x.shape)
        gradient = (slopes[:, :, None, None, None] * directions).mean(0)
        return Answer(self.point.logits(x).logits, values.mean(0), gradient)


class BPDA(SubstituteGradient):
    """The gradient past steps that hide it: backward pass differentiable approximation (Athalye et al. 2018,
    arXiv:1802.00420, section 4.1).

    Where the model offers ``surrogate(x)``, differentiable logits that agree with its own up to such a step
    (a purifier, for example), that is differentiated. Otherwise rounding, and every torch.autograd.Function
    with a backward pass of its own, is replaced by the identity in the backward pass where the shapes allow
    it.
    """

    def substitute(self, x: Tensor, loss: Loss) -> Tensor:
        x = x.detach().requires_grad_()
        declared = "surrogate" in self.model.supports
        with torch.enable_grad():
            # The model itself: layers of the quick copy have backward passes of their own.
            logits = self.model.surrogate(x) if declared else self.model.logits(x)
            for step in [] if declared else _gradient_hiding_nodes(logits):
                step.register_hook(_pass_straight_through)
            return torch.autograd.grad(loss(logits).sum(), x)[0]


def hides_gradients(model: Classifier) -> bool:
    """Whether ``BPDA`` applies: the model offers a ``surrogate`` or has steps that hide the gradient."""
    model = unwrapped(model)
    if "surrogate" in model.supports:
        return True
    weight = next(model.parameters(), torch.zeros(()))
    x = torch.full((1, *model.input_shape), 0.5, device=weight.device, requires_grad=True)
    with torch.enable_grad():
        return bool(_gradient_hiding_nodes(model.logits(x)))


ROUNDING_NODES = frozenset(
    {"RoundBackward0", "RoundBackward1", "FloorBackward0", "CeilBackward0", "TruncBackward0"}
)


def _gradient_hiding_nodes(logits: Tensor) -> list[Node]:
    """The nodes of the autograd graph that round, or that have a backward pass of their own (except
    ``Checkpointed``, whose backward pass is exact)."""
    todo, seen = [logits.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [before for before, _ in node.next_functions]
    own = [n for n in seen if isinstance(n, BackwardCFunction) and n._forward_cls is not Checkpointed]
    return own + [node for node in seen if node.name() in ROUNDING_NODES]


def _pass_straight_through(
    inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """A backward hook: each input's gradient becomes the output's, where the shapes agree."""
    out = outputs[0]
    return tuple(
        given if given is None or out is None or given.shape != out.shape else out for given in inputs
    )


def antithetic_noise(x: Tensor, m: int) -> Tensor:
    """Standard normal noise for ``m`` (even) copies of x, in pairs n and -n: the second half is the
    negatives.

    The random stream is keyed by the bits of the point, so what a row gets depends neither on the other rows
    nor on the number of queries before. The sample's seed enters by the random start that led to the point.
    """
    pixels = x.detach().cpu().contiguous().numpy()
    names = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in pixels]
    draws = Draws(0, "noise", torch.tensor([int.from_bytes(name, "little", signed=True) for name in names]))
    half = draws.normal(m // 2, *x.shape[1:]).to(x).transpose(0, 1).reshape(-1, *x.shape[1:])
    return torch.cat([half, -half])
