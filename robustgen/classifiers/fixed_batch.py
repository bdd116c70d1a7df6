"""Calls a classifier at one fixed batch size, and counts the calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from robustgen.classifiers.base import Classifier
from robustgen.errors import UserError


class FixedBatch(Classifier):
    """Calls a classifier at one batch size, the last batch padded, and counts forward and backward passes.

    Kernels, and with them the last bits of a result, depend on the batch size: at a fixed size a sample's
    result does not depend on how many others are evaluated with it. ``forwards`` and ``backwards``
    (batch,) count the passes of each sample of the current batch, without padding: ``begin`` starts a
    batch, and ``serving`` selects the rows that the following calls are charged to.

    ``quick``: a copy of the model with faster kernels (quick.py), called and counted in the same way;
    ``bfloat16_gradients``: whether attacks take its gradients in bfloat16. ``sizes``: smaller batch sizes
    that are known to give the same bits; a partial batch is padded to the smallest that holds it.
    """

    def __init__(
        self, model: Classifier, batch: int, *, quick: Classifier | None = None,
        bfloat16_gradients: bool = False, sizes: Sequence[int] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.model = model
        self.batch = batch
        self.bfloat16_gradients = bfloat16_gradients
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
        """Set the batch size of the following calls."""
        self.batch = batch
        if self.quick is not None:
            self.quick.batch = batch

    def begin(self, samples: int, device: torch.device | str = "cpu") -> None:
        """Reset the counts for a batch of ``samples``; counting on their device needs no synchronisation."""
        self.forwards = torch.zeros(samples, dtype=torch.float64, device=device)
        self.backwards = torch.zeros_like(self.forwards)
        self._serve(torch.arange(samples, device=device))
        if self.quick is not None:
            self.quick.forwards, self.quick.backwards = self.forwards, self.backwards

    @contextmanager
    def serving(self, rows: Tensor) -> Iterator[None]:
        """Within the block, charge calls to ``rows``, indices into the rows that are charged now."""
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
        self._count(self.backwards, len(x))  # Tweedie's formula takes a backward pass
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
            self._count(self.backwards, len(x))  # an upper bound: the graph may go unused
        parts = []
        for start in range(0, len(x), self.batch):
            piece = slice(start, start + self.batch)
            rows = len(x[piece])
            extra = [self._pad(a[piece]) if isinstance(a, Tensor) and a.ndim else a for a in per_sample]
            # in the dtype of x, with which the caller goes on
            parts.append(method(self._pad(x[piece]), *extra)[:rows].to(x.dtype))
            # a NaN in x, from an outside attack perhaps, is not the model's fault
            if bool(parts[-1].isnan().any()) and not bool(x.isnan().any()):
                raise UserError(
                    f"the model returned NaN from {method.__name__}",
                    remedy="'robustgen check MODEL' says more",
                )
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def count_backward(self, rows: int) -> None:
        """Count one more backward pass through the last call of ``rows`` images."""
        self._count(self.backwards, rows)

    def _count(self, tally: Tensor, calls: int) -> None:
        # An outside attack may drop rows unannounced: the calls are then shared among all rows it was given.
        if len(tally):
            share = tally.new_full((len(self._served),), calls / len(self._served))
            tally.index_add_(0, self._served, share)  # a sample may appear several times

    def _pad(self, rows: Tensor) -> Tensor:
        missing = min([self.batch, *(size for size in self.sizes if size >= len(rows))]) - len(rows)
        padding = rows[-1:].detach().expand(missing, *rows.shape[1:])
        return torch.cat([rows, padding]) if missing else rows


def unwrapped(model: Classifier) -> Classifier:
    """The classifier inside a FixedBatch; any other classifier as it is."""
    return model.model if isinstance(model, FixedBatch) else model


def serving(model: Classifier, rows: Tensor) -> AbstractContextManager[None]:
    """``model.serving(rows)`` for a FixedBatch; does nothing for any other classifier."""
    return model.serving(rows) if isinstance(model, FixedBatch) else nullcontext()
