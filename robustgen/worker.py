"""What is done with a chunk, wherever an executor runs it: slice, perturb, enforce the budget, read out."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.classifiers.quick import quick_copy
from robustgen.data import Dataset
from robustgen.draws import Draws, forked_generators, seed_generators
from robustgen.errors import UserError
from robustgen.evaluation import Evaluation, load_data
from robustgen.limits import out_of_memory, time_limit
from robustgen.metrics.verdicts import majority
from robustgen.perturb import Attack, enforce_budget
from robustgen.pilot import Kernels
from robustgen.rowtable import row_schema
from robustgen.scores import read_scores
from robustgen.store import Chunk
from robustgen.types import VERDICT_DRAWS


class Reading(NamedTuple):
    """What a chunk leaves: its rows, the tables beside them, the perturbed pictures of an attack.

    ``batch``: how many pictures a call of the model took, where memory did not allow the run's batch.
    """

    rows: pa.Table
    tables: dict[str, pa.Table]
    adversarial: pa.Table | None
    seconds: float
    batch: int | None = None


class Worker:
    """Computes the chunks of one model's run; data sets are kept by ``evaluation``, once a process."""

    def __init__(
        self,
        model: Classifier,
        evaluations: Iterable[Evaluation],
        *,
        source: str,
        seed: int,
        kernels: Kernels,
        root: Path | None = None,
        stochastic: bool = False,
        limit: float | None = None,
    ) -> None:
        self.device = torch.device(kernels.device)
        model = model.eval().requires_grad_(False).to(self.device)
        self.evaluations = {evaluation.name: evaluation for evaluation in evaluations}
        attacked = any(isinstance(e.perturbation, Attack) for e in self.evaluations.values())
        # A copy of a random model would draw from a stream of its own.
        copied = attacked and not stochastic
        example = load_data(source, "test", root).images[: kernels.batch].to(self.device) if copied else None
        quick = None if example is None else quick_copy(model, example)
        self.model = FixedBatch(
            model,
            kernels.batch,
            quick=quick,
            bfloat16_gradients=kernels.precision == "bf16",
            sizes=kernels.sizes,
        )
        self.model.stochastic |= stochastic
        self.source = source
        self.seed = seed
        self.root = root
        self.limit = limit

    def __call__(self, chunk: Chunk) -> Reading:
        """A chunk's reading; where memory runs out, at half the batch, and half of that again.

        Only this chunk: the next begins at the run's batch, at which rows are the same to the bit.
        """
        batch = self.model.batch
        try:
            while True:
                try:
                    with time_limit(self.limit):
                        reading = self._read(chunk)
                    break
                except Exception as error:
                    if self.model.batch == 1 or not out_of_memory(error):
                        raise
                # past the block, since the error holds on to the memory of all that it went through
                self.model.resize(self.model.batch // 2)
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
            return reading._replace(batch=self.model.batch) if self.model.batch < batch else reading
        finally:
            self.model.resize(batch)

    def _read(self, chunk: Chunk) -> Reading:
        """slice > perturb > enforce_budget > read out."""
        began = time.perf_counter()
        evaluation = self.evaluations[chunk.evaluation]
        part = self._pictures(evaluation).slice(chunk.start, chunk.stop)
        draws = Draws(self.seed, evaluation.name, part.sample_ids)
        x, y = part.images.to(self.device), part.labels.to(self.device)
        self.model.begin(len(part), self.device)

        perturbation = evaluation.perturbation
        with seeded(self.model, "search", draws, self.device):
            perturbed = perturbation(self.model, x, y, draws)
        columns: dict[str, Any] = {}
        adversarial = None
        images = perturbed.images
        if isinstance(perturbation, Attack):
            images, within, distance = enforce_budget(perturbation.threat, x, images)
            if perturbed.out_of_budget is not None:
                within &= ~perturbed.out_of_budget
            columns |= {"within_budget": within.tolist(), "distance": distance.tolist()}
            adversarial = _picture_table(part.sample_ids, images)
        # A stochastic model draws for a whole batch at once, so its rows depend on their chunk.
        by_chunk = perturbation.seeded_by_chunk or self.model.stochastic
        columns["seeded_by"] = ["chunk" if by_chunk else "sample"] * len(part)
        verdict = ask(self.model, images, y, draws)
        columns |= verdict.columns() | {"sample_id": part.sample_ids.tolist(), "label": y.tolist()}
        columns["broken_by"] = self._broken_by(perturbed.broken_by, verdict)
        with seeded(self.model, "scores", draws, self.device):
            columns["scores"] = read_scores(evaluation.scores, self.model, images)
        with seeded(self.model, "readout", draws, self.device):
            tables = {r.name: r(self.model, images, y, draws) for r in evaluation.readouts()}
        columns |= {"forwards": self.model.forwards.tolist(), "backwards": self.model.backwards.tolist()}
        schema = row_schema(self.model.num_classes)
        rows = pa.table(
            [pa.array(columns.get(f.name) or [None] * len(part), f.type) for f in schema], schema=schema
        )
        return Reading(rows, tables, adversarial, time.perf_counter() - began)

    def _pictures(self, evaluation: Evaluation) -> Dataset:
        if evaluation.foreign is not None:
            return evaluation.foreign()
        return load_data(self.source, evaluation.split, self.root)

    def _broken_by(self, found: list[str | None] | None, verdict: Verdict) -> list[str | None] | None:
        """What a search took for broken was one draw of a stochastic model; the verdict decides."""
        if found is None or not self.model.stochastic:
            return found
        right = majority(verdict.correct.cpu().numpy(), np.asarray(verdict.draws)).tolist()
        return [None if stands else stage for stage, stands in zip(found, right, strict=True)]


class Verdict(NamedTuple):
    """What a model says of pictures in ``draws`` answers that no attack has seen.

    ``correct`` (batch,): how many of them are right; ``logits`` (batch, classes): see ``combine``;
    ``log_prob`` (batch,): their mean, None where the model has none.
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
def ask(model: FixedBatch, images: Tensor, y: Tensor, draws: Draws) -> Verdict:
    """The verdict on pictures (batch, ...) with labels y: fresh forwards in float32, one of a
    deterministic model and VERDICT_DRAWS of a stochastic one, on draws of their own."""
    count = VERDICT_DRAWS if model.stochastic else 1
    with seeded(model, "verdict", draws, images.device):
        answers = torch.stack([_logits(model, images, draws.sample_ids) for _ in range(count)])
        log_prob = None
        if "log_prob" in model.supports:
            log_prob = torch.stack([model.log_prob(images) for _ in range(count)]).mean(0)
    correct = (answers.argmax(2) == y).sum(0)
    return Verdict(count, correct, combine(answers), log_prob)


def combine(answers: Tensor) -> Tensor:
    """One row of logits for several: (draws, batch, classes) -> (batch, classes).

    Their softmax is the mean of the draws' softmax, so that calibration and scores of foreign
    pictures mean what they mean for one draw; their logsumexp, the energy score, is the mean of the
    draws' (it would be 0 for plain log-probabilities). One draw stays as it is, to the bit.
    """
    if len(answers) == 1:
        return answers[0]
    exact = answers.double()
    log_mean = exact.log_softmax(2).logsumexp(0) - math.log(len(exact))
    return (log_mean + exact.logsumexp(2).mean(0)[:, None]).float()


def _logits(model: FixedBatch, images: Tensor, sample_ids: np.ndarray) -> Tensor:
    """Logits in float32, or a UserError where they are none."""
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
    """Within the block a stochastic model draws from a seed of this purpose and these samples.

    Its own generator is seeded by ``reseed``; one that draws from the global generators instead
    finds them seeded likewise, in a fork: they are as before afterwards. What a module draws from a
    generator of its own without ``reseed`` is fresh as well, but no rerun draws it again.
    """
    if not model.stochastic:
        yield
        return
    seed = Draws(draws.seed, f"{draws.scope}/{purpose}", draws.sample_ids).integer()
    with forked_generators(seed, device):
        model.reseed(seed)
        seed_generators(seed)  # where reseed draws from them, or seeds them
        yield


@torch.no_grad()
def is_random(model: Classifier, images: Tensor) -> bool:
    """Whether two calls of a model on the same pictures differ in any bit; a NaN says nothing.

    Where it fails on all of them, on account of one picture or for want of memory, the first part that
    it answers decides: the last half, the last half of the rest, and so on. Raises UserError where it
    answers none, since a run must not begin on a guess.
    """
    start, stop = 0, len(images)
    while True:
        try:
            one, other = (model.logits(images[start:stop]) for _ in range(2))
            return not bool(((one == other) | one.isnan() | other.isnan()).all())
        except Exception as error:  # the user's code
            if stop == 1:
                raise UserError(
                    "the model fails on every part of the first batch",
                    got=f"{type(error).__name__}: {error}",
                    remedy="'robustgen check MODEL' says more",
                ) from None  # fmt: skip
            start, stop = (stop // 2, stop) if stop == len(images) and start == 0 else (start // 2, start)


def _picture_table(sample_ids: Tensor, images: Tensor) -> pa.Table:
    flat = images.cpu().numpy().reshape(len(images), -1)
    values = pa.array(np.ascontiguousarray(flat).ravel(), pa.float32())
    pictures = pa.FixedSizeListArray.from_arrays(values, flat.shape[1])
    return pa.table({"sample_id": pa.array(sample_ids.numpy()), "image": pictures})
