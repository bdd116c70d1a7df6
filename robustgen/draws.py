"""Random numbers per sample instead of per batch.

Every number is a pure function of (protocol seed, evaluation, sample id, number of draws before it), so a
sample gets the same numbers in any chunk, in any order, on any number of workers, and after any crash. The
generator is splitmix64 (Steele, Lea and Flood 2014) with a counter, which is vectorised over the batch.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class Draws:
    """Independent random streams, one for each sample of a batch.

    ``seed``: the protocol's seed; ``scope``: the evaluation's name, without the model's, so that models
    that are compared see the same noise; ``sample_ids`` (batch,).
    """

    def __init__(self, seed: int, scope: str, sample_ids: Tensor | np.ndarray) -> None:
        self.seed = seed
        self.scope = scope
        self.sample_ids = np.asarray(sample_ids, dtype=np.int64)
        digest = hashlib.sha256(f"{seed}/{scope}".encode()).digest()
        self._keys = _child(np.frombuffer(digest[:8], dtype="<u8")[0], self.sample_ids)
        self._drawn = 0

    def at(self, rows: Tensor, *place: Tensor | int) -> Draws:
        """New streams for some samples (indices of the batch), derived from theirs and from ``place``.

        A place is one or more integers, such as the numbers of a stage and of a restart, each for all rows
        or one a row. Different places give independent streams, whatever was drawn before.
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
        """float32 uniform in [0, 1), shape (batch, \\*shape)."""
        return torch.from_numpy(self.uniform64(shape).astype(np.float32)).clamp_max_(1 - 2**-24)

    def shared(self, *shape: int) -> Tensor:
        """As ``uniform``; only ``ReferenceDraws`` (attacks/replay.py) shares one draw among all rows."""
        return self.uniform(*shape)

    def keys(self) -> Tensor:
        """Keys of the rest of each stream, int64 (batch,), from which ``uniform_at`` draws on any device."""
        with np.errstate(over="ignore"):
            return torch.from_numpy((self._keys + np.uint64(self._drawn) * _GOLDEN).view(np.int64))

    def normal(self, *shape: int) -> Tensor:
        """float32 standard normal, shape (batch, \\*shape)."""
        from scipy.special import ndtri

        # The inverse distribution function in float64, element by element: unlike a vectorised Box-Muller,
        # its bits cannot depend on an element's position in the array.
        return torch.from_numpy(ndtri(self.uniform64(shape) + 2.0**-54).astype(np.float32))

    def integer(self) -> int:
        """One integer for the whole batch, which seeds the global generators for an outside attack."""
        text = f"{self.seed}/{self.scope}/{self.sample_ids.tolist()}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")

    def uniform64(self, shape: tuple[int, ...]) -> np.ndarray:
        """float64 uniform in [0, 1) with 53 random bits, shape (batch, *shape)."""
        size = math.prod(shape)
        counter = np.arange(self._drawn, self._drawn + size, dtype=np.uint64)
        self._drawn += size
        with np.errstate(over="ignore"):
            bits = _mix(self._keys[:, None] + (counter[None, :] + np.uint64(1)) * _GOLDEN)
        return ((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(len(self), *shape)


def uniform_at(keys: Tensor, first: Tensor, n: int) -> Tensor:
    """Draws number ``first`` to ``first`` + n - 1 of the streams with these ``keys``, equal to
    ``Draws.uniform``'s.

    ``keys`` and ``first``: int64 (batch,). Returns float32 (batch, n). Computed on the device of the keys,
    so that a loop on a GPU does not wait for the host.
    """
    turns = first[:, None] + torch.arange(1, n + 1, device=keys.device)
    z = turns.mul_(_signed(_GOLDEN)).add_(keys[:, None])
    z = z.bitwise_xor_(_shifted(z, 30)).mul_(_signed(_FACTORS[0]))
    z = z.bitwise_xor_(_shifted(z, 27)).mul_(_signed(_FACTORS[1]))
    z = z.bitwise_xor_(_shifted(z, 31))
    return _shifted(z, 11).double().mul_(2.0**-53).float().clamp_max_(1 - 2**-24)


def seed_generators(seed: int) -> None:
    """Seed torch's, numpy's and Python's global generators."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


@contextmanager
def forked_generators(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators within the block, and restore their states after it."""
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device.index or 0] if device.type == "cuda" else []):
        seed_generators(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


def _child(keys: np.ndarray, number: np.ndarray) -> np.ndarray:
    """The keys of the streams number ``number`` derived from those of ``keys``."""
    with np.errstate(over="ignore"):
        return _mix(keys + _mix(number.astype(np.uint64) * _GOLDEN + _GOLDEN))


def _mix(z: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64, on uint64 with wrap-around."""
    z = (z ^ (z >> np.uint64(30))) * _FACTORS[0]
    z = (z ^ (z >> np.uint64(27))) * _FACTORS[1]
    return z ^ (z >> np.uint64(31))


def _signed(z: np.uint64) -> int:
    """The int64 with the same bits: torch has no uint64 arithmetic, but int64 wraps around alike."""
    return int(z.view(np.int64))


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 z."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)
