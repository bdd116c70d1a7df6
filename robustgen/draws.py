"""Random draws that belong to a sample, not to a batch.

Every draw is a pure function of (protocol seed, evaluation, sample id, how many draws came before),
so a sample sees the same numbers in any chunk, in any order, on any number of workers, once or
after ten crashes. The generator is splitmix64 (Steele, Lea and Flood 2014) in counter form, which
runs over a whole batch at once.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Draws:
    """The random draws of a batch of samples, one independent stream a sample.

    Parameters: ``seed``, the protocol's; ``scope``, the evaluation's name (the model's is left out
    on purpose: models that are compared see the same noise); ``sample_ids`` of shape (batch,).
    """

    def __init__(self, seed: int, scope: str, sample_ids: Tensor | np.ndarray) -> None:
        self.seed = seed
        self.scope = scope
        self.sample_ids = np.asarray(sample_ids, dtype=np.int64)
        digest = hashlib.sha256(f"{seed}/{scope}".encode()).digest()
        self._keys = _child(np.frombuffer(digest[:8], dtype="<u8")[0], self.sample_ids)
        self._drawn = 0

    def at(self, rows: Tensor, *place: Tensor | int) -> Draws:
        """The streams of some samples (indices of the batch) at a ``place`` of their own.

        A place is one or more integers, such as the number of a restart and of a step, one for all
        rows or one a row; other places are other streams, and what was drawn before does not matter.
        """
        index = rows.cpu().numpy()
        streams = object.__new__(Draws)
        streams.seed, streams.scope, streams.sample_ids = self.seed, self.scope, self.sample_ids[index]
        keys = self._keys[index]
        for number in place:
            keys = _child(keys, number.cpu().numpy() if isinstance(number, Tensor) else np.asarray(number))
        streams._keys, streams._drawn = keys, 0
        return streams

    def __len__(self) -> int:
        return len(self.sample_ids)

    def uniform(self, *shape: int) -> Tensor:
        """float32 draws from [0, 1), shape (batch, \\*shape)."""
        return torch.from_numpy(self._uniform64(shape).astype(np.float32)).clamp_max_(1 - 2**-24)

    def shared(self, *shape: int) -> Tensor:
        """As ``uniform``: what the reference's code draws once for a batch belongs to a sample here."""
        return self.uniform(*shape)

    def normal(self, *shape: int) -> Tensor:
        """float32 draws from N(0, 1), shape (batch, \\*shape)."""
        from scipy.special import ndtri

        # The inverse distribution function, element by element in float64: unlike Box-Muller's
        # vectorised log and cos, it cannot depend on where in an array an element stands.
        return torch.from_numpy(ndtri(self._uniform64(shape) + 2.0**-54).astype(np.float32))

    def integer(self) -> int:
        """One integer for the whole batch: the seed of an outside attack's global generator."""
        text = f"{self.seed}/{self.scope}/{self.sample_ids.tolist()}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")

    def _uniform64(self, shape: tuple[int, ...]) -> np.ndarray:
        size = math.prod(shape)
        counter = np.arange(self._drawn, self._drawn + size, dtype=np.uint64)
        self._drawn += size
        with np.errstate(over="ignore"):
            bits = _mix(self._keys[:, None] + (counter[None, :] + np.uint64(1)) * _GOLDEN)
        return ((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(len(self), *shape)


class ReferenceDraws:
    """Draws as the reference implementations of attacks make them: from torch's global generator,
    for a whole batch in one go. They belong to the batch, so nothing but comparisons uses them."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def uniform(self, *shape: int) -> Tensor:
        """Draws from [0, 1), shape (rows, \*shape)."""
        return torch.rand(self.rows, *shape)

    def normal(self, *shape: int) -> Tensor:
        """Draws from N(0, 1), shape (rows, \*shape)."""
        return torch.randn(self.rows, *shape)

    def shared(self, *shape: int) -> Tensor:
        """Draws from [0, 1), shape (rows, \*shape), the same for all rows."""
        return torch.rand(*shape).expand(self.rows, *shape)


def _child(keys: np.ndarray, number: np.ndarray) -> np.ndarray:
    """The keys of the streams that ``number`` leads to from ``keys``."""
    with np.errstate(over="ignore"):
        return _mix(keys + _mix(number.astype(np.uint64) * _GOLDEN + _GOLDEN))


def _mix(z: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser on uint64, which wraps around by design."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
