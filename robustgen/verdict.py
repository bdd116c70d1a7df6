"""The verdict on perturbed pictures: fresh forward passes in float32, which no attack has seen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.draws import Draws, forked_generators, seed_generators
from robustgen.errors import UserError
from robustgen.types import VERDICT_DRAWS


class Verdict(NamedTuple):
    """A model's answers on a batch, over ``draws`` forward passes: one, unless the model is stochastic.

    ``correct`` (batch,): in how many of them the prediction is right; ``logits`` (batch, classes): see
    ``combine_draws``; ``log_prob`` (batch,): the mean over the passes, None if the model has no log p(x).
    """

    draws: int
    correct: Tensor
    logits: Tensor
    log_prob: Tensor | None

    def columns(self) -> dict[str, Any]:
        """As columns of the rows."""
        return {
            "logits": self.logits.cpu().numpy().tolist(),
            "log_prob": None if self.log_prob is None else self.log_prob.tolist(),
            "draws": [self.draws] * len(self.correct),
            "draws_correct": self.correct.tolist(),
        }


@torch.no_grad()
def fresh_verdict(model: FixedBatch, images: Tensor, y: Tensor, draws: Draws) -> Verdict:
    """Ask a model about images (batch, ...) with labels y (batch,): once if it is deterministic,
    VERDICT_DRAWS times if it is stochastic, on draws that nothing else uses."""
    count = VERDICT_DRAWS if model.stochastic else 1
    with seeded(model, "verdict", draws, images.device):
        answers = torch.stack([_finite_logits(model, images, draws.sample_ids) for _ in range(count)])
        log_prob = None
        if "log_prob" in model.supports:
            log_prob = torch.stack([model.log_prob(images) for _ in range(count)]).mean(0)
    correct = (answers.argmax(2) == y).sum(0)
    return Verdict(count, correct, combine_draws(answers), log_prob)


def combine_draws(answers: Tensor) -> Tensor:
    """Combine the logits of several draws: (draws, batch, classes) -> (batch, classes).

    The softmax of the result is the mean softmax of the draws, so that calibration and OOD scores keep
    their meaning; its logsumexp, the energy score, is their mean logsumexp (for plain log-probabilities
    it would always be 0). A single draw is returned unchanged, bit for bit.
    """
    if len(answers) == 1:
        return answers[0]
    exact = answers.double()
    log_mean = exact.log_softmax(2).logsumexp(0) - math.log(len(exact))
    return (log_mean + exact.logsumexp(2).mean(0)[:, None]).float()


def _finite_logits(model: FixedBatch, images: Tensor, sample_ids: np.ndarray) -> Tensor:
    """Logits in float32; UserError if their shape is wrong or any is NaN or infinite."""
    logits = model.logits(images).float()
    expected = (len(images), model.num_classes)
    if tuple(logits.shape) != expected:
        raise UserError(
            "the model's output has the wrong shape", expected=expected, got=tuple(logits.shape),
            remedy="'robustgen check MODEL' says more",
        )  # fmt: skip
    finite = torch.isfinite(logits).all(1).cpu()
    if not bool(finite.all()):
        raise UserError(
            "the model returned NaN or infinite logits",
            where=f"sample ids {sample_ids[~finite.numpy()].tolist()[:8]}",
            remedy="'robustgen check MODEL' says more",
        )
    return logits


@contextmanager
def seeded(model: FixedBatch, purpose: str, draws: Draws, device: torch.device) -> Iterator[None]:
    """Inside the block a stochastic model draws from a seed that depends on the purpose and the samples.

    Both a generator of the model's own (by ``reseed``) and the global generators are seeded; the global
    ones are restored afterwards. A module that draws from its own generator but does not implement
    ``reseed`` draws fresh noise here too, which no rerun can repeat.
    """
    if not model.stochastic:
        yield
        return
    seed = Draws(draws.seed, f"{draws.scope}/{purpose}", draws.sample_ids).integer()
    with forked_generators(seed, device):
        model.reseed(seed)
        seed_generators(seed)  # after reseed, which may draw from the global generators or seed them
        yield
