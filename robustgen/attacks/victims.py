"""Views of a model that survive what hides a gradient: noise, randomness, rounding, a step without one.

Each is a Victim whose gradients come from somewhere else than the logits at the point itself. Hits
are about the model itself wherever its answer is one number.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from robustgen.attacks.victim import SETTLED, Answer, Loss, Said, Victim, finite, right_share
from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import unwrapped
from robustgen.classifiers.likelihood import Checkpointed
from robustgen.draws import Draws
from robustgen.types import VERDICT_DRAWS, ConditionalNoise


class Averaged(Victim):
    """A stochastic model by the mean over ``m`` draws of its own randomness: expectation over
    transformation (Athalye et al. 2018, arXiv:1802.00420).

    Loss and gradient are means over the draws, so the best point is not one lucky draw's. Logits are logs
    of the mean p(y | x): a few draws that are off by many nats outweigh the others in a mean of logs, and
    neither by majority nor here. A hit is confirmed by as many draws that the search has not seen, of which
    hardly any (SETTLED) may be right.
    """

    def __init__(self, model: Classifier, m: int = 16) -> None:
        super().__init__(model)
        self.m = m

    @torch.no_grad()
    def logits(self, x: Tensor) -> Answer:
        return Answer(_log_mean_softmax(self.fast.logits(copies(x, self.m)), self.m))

    def see(self, x: Tensor) -> Tensor:
        return self.fast.logits(copies(x, self.m))

    def value(self, seen: Tensor, loss: Loss) -> Tensor:
        return mean_loss(seen, loss, self.m)

    def say(self, seen: Tensor) -> Tensor:
        return _log_mean_softmax(seen, self.m)

    @torch.no_grad()
    def confirm(self, x: Tensor, y: Tensor) -> Tensor:
        predicted = self.fast.logits(copies(x, self.m)).argmax(1).view(self.m, -1)
        return right_share(predicted, y) <= SETTLED


def usual_view(model: Classifier) -> Victim:
    """How an attack sees a model unless it knows better: as it is, or by the mean over its own draws."""
    return Averaged(model) if model.stochastic else Victim(model)


@torch.no_grad()
def said(model: Classifier, x: Tensor) -> Said:
    """What a model itself, no copy of it, says of x; a stochastic one by as many draws as a verdict takes."""
    m = VERDICT_DRAWS if model.stochastic else 1
    drawn = model.logits(copies(x, m))
    return Said(_log_mean_softmax(drawn, m) if model.stochastic else drawn, drawn.argmax(1).view(m, -1))


class View(Victim):
    """Abstract: loss and logits of the point itself, as ``point`` answers; a gradient from elsewhere.

    ``point`` is Victim for a deterministic model and Averaged for a stochastic one.
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
        return Answer(logits, loss(logits), finite(self.direction(x, loss)))

    def gradients(self, x: Tensor, losses: Sequence[Loss]) -> Iterator[Answer]:
        return (self.gradient(x, loss) for loss in losses)

    def direction(self, x: Tensor, loss: Loss) -> Tensor:
        """What the search climbs along in place of the gradient at x, of x's shape."""
        raise NotImplementedError


class Smoothed(View):
    """The gradient of the mean loss over Gaussian noise of ``sigma`` (pixel units), by ``m`` draws.

    A model that has noise levels is told the nearest of them. If its log-joints are densities of noisy
    pictures, then by Tweedie's formula the gradient of the loss z_k - z_y is [D(x, k) - D(x, y)] / sigma^2,
    the difference of two denoised pictures. The others are asked about noisy pictures as if they were
    clean (Smooth Adversarial Training's attack, Salman et al. 2019, arXiv:1906.04584).
    """

    def __init__(self, point: Victim, sigma: float, m: int = 16) -> None:
        super().__init__(point)
        self.sigma, self.m = sigma, m
        noise = point.model.noise
        self.level = min(max(sigma, noise.low), noise.high) if isinstance(noise, ConditionalNoise) else None

    def direction(self, x: Tensor, loss: Loss) -> Tensor:
        noise = self.sigma * noise_at(x, self.m)
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.fast.logits(copies(x, self.m) + noise, self.level)
            return torch.autograd.grad(mean_loss(logits, loss, self.m).sum(), x)[0]


class Estimated(View):
    """The same gradient from logits alone, by differences along ``m`` / 2 random directions: natural
    evolution strategies (Wierstra et al. 2014; Ilyas et al. 2018, arXiv:1804.08598, section 2.1).

    Nothing that is done to the backward pass changes it, and where logits are rounded the mean over
    noise is not. The loss is that mean too: at the point itself it would be flat.
    """

    def __init__(self, point: Victim, sigma: float, m: int = 64) -> None:
        super().__init__(point)
        self.sigma, self.m = sigma, m

    @torch.no_grad()
    def gradient(self, x: Tensor, loss: Loss) -> Answer:
        noise = noise_at(x, self.m)
        logits = self.fast.logits(copies(x, self.m) + self.sigma * noise)
        values = torch.stack([loss(part) for part in logits.chunk(self.m)])
        slopes = (values[: self.m // 2] - values[self.m // 2 :]) / (2 * self.sigma)
        directions = noise[: len(noise) // 2].view(self.m // 2, *x.shape)
        gradient = (slopes[:, :, None, None, None] * directions).mean(0)
        return Answer(self.point.logits(x).logits, values.mean(0), gradient)


class Straight(View):
    """The gradient past steps whose backward pass hides it: backward pass differentiable approximation
    (Athalye et al. 2018, arXiv:1802.00420, section 4.1).

    A model may offer ``surrogate(x)``, differentiable logits (batch, classes) that agree with its own
    but for such a step, a purifier for one. Of the others, rounding and every function with a backward
    pass of its own (torch.autograd.Function) are taken for the identity where the shapes allow it.
    """

    def direction(self, x: Tensor, loss: Loss) -> Tensor:
        x = x.detach().requires_grad_()
        declared = "surrogate" in self.model.supports
        with torch.enable_grad():
            # not the quick copy, whose own layers have backward passes of their own
            logits = self.model.surrogate(x) if declared else self.model.logits(x)
            for step in [] if declared else _hidden_steps(logits):
                step.register_hook(_unchanged)
            return torch.autograd.grad(loss(logits).sum(), x)[0]


def hides_gradients(model: Classifier) -> bool:
    """Whether the model offers a ``surrogate``, or has steps that ``Straight`` takes for the identity."""
    model = unwrapped(model)
    if "surrogate" in model.supports:
        return True
    weight = next(model.parameters(), torch.zeros(()))
    x = torch.full((1, *model.input_shape), 0.5, device=weight.device, requires_grad=True)
    with torch.enable_grad():
        return bool(_hidden_steps(model.logits(x)))


ROUNDING = frozenset(
    {"RoundBackward0", "RoundBackward1", "FloorBackward0", "CeilBackward0", "TruncBackward0"}
)


def _hidden_steps(logits: Tensor) -> list[Node]:
    """The nodes of the graph behind ``logits`` that round or that bring a backward pass of their own, but
    for ``Checkpointed``'s, which is the exact one."""
    todo, seen = [logits.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [before for before, _ in node.next_functions]
    own = [n for n in seen if isinstance(n, BackwardCFunction) and n._forward_cls is not Checkpointed]
    return own + [node for node in seen if node.name() in ROUNDING]


def _unchanged(
    inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients of a step's inputs: that of its output, where it fits."""
    out = outputs[0]
    return tuple(
        given if given is None or out is None or given.shape != out.shape else out for given in inputs
    )


def copies(x: Tensor, m: int) -> Tensor:
    """The whole batch m times over, one after another."""
    return x.expand(m, *x.shape).reshape(-1, *x.shape[1:])


def mean_loss(logits: Tensor, loss: Loss, m: int) -> Tensor:
    """The mean of the loss over m copies of a batch, (batch,)."""
    return torch.stack([loss(part) for part in logits.chunk(m)]).mean(0)


def _log_mean_softmax(logits: Tensor, m: int) -> Tensor:
    return logits.log_softmax(1).view(m, -1, logits.shape[1]).logsumexp(0) - math.log(m)


def noise_at(x: Tensor, m: int) -> Tensor:
    """Standard normal noise for m (even) copies of x, in pairs n and -n: the negatives are the second half.

    It is drawn from a stream that the point's own bits name: other points have other noise, and what
    a row gets depends neither on its neighbours nor on how often the model was asked. The sample's
    seed is in it by the random start that led to the point.
    """
    pixels = x.detach().cpu().contiguous().numpy()
    names = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in pixels]
    draws = Draws(0, "noise", torch.tensor([int.from_bytes(name, "little", signed=True) for name in names]))
    half = draws.normal(m // 2, *x.shape[1:]).to(x).transpose(0, 1).reshape(-1, *x.shape[1:])
    return torch.cat([half, -half])
