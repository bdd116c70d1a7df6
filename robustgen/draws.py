"""Random draws that belong to a sample, not to a batch.

Every draw is a pure function of (protocol seed, evaluation, sample id, how many draws came before),
so a sample sees the same numbers in any chunk, in any order, on any number of workers, once or
after ten crashes. The generator is splitmix64 (Steele, Lea and Flood 2014) in counter form, which
runs over a whole batch at once.
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
        return torch.from_numpy(self.uniform64(shape).astype(np.float32)).clamp_max_(1 - 2**-24)

    def shared(self, *shape: int) -> Tensor:
        """As ``uniform``; in ``ReferenceDraws`` (attacks/replay.py) one draw for all rows, as in the
        reference's code."""
        return self.uniform(*shape)

    def keys(self) -> Tensor:
        """What is left of the streams, int64 (batch,): ``uniform_at`` draws from it on any device."""
        with np.errstate(over="ignore"):
            return torch.from_numpy((self._keys + np.uint64(self._drawn) * _GOLDEN).view(np.int64))

    def normal(self, *shape: int) -> Tensor:
        """float32 draws from N(0, 1), shape (batch, \\*shape)."""
        from scipy.special import ndtri

        # The inverse distribution function, element by element in float64: unlike Box-Muller's
        # vectorised log and cos, it cannot depend on where in an array an element stands.
        return torch.from_numpy(ndtri(self.uniform64(shape) + 2.0**-54).astype(np.float32))

    def integer(self) -> int:
        """One integer for the whole batch: the seed of an outside attack's global generator."""
        text = f"{self.seed}/{self.scope}/{self.sample_ids.tolist()}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")

    def uniform64(self, shape: tuple[int, ...]) -> np.ndarray:
        """Uniform in [0, 1) with 53 bits, float64 (samples, *shape)."""
        size = math.prod(shape)
        counter = np.arange(self._drawn, self._drawn + size, dtype=np.uint64)
        self._drawn += size
        with np.errstate(over="ignore"):
            bits = _mix(self._keys[:, None] + (counter[None, :] + np.uint64(1)) * _GOLDEN)
        return ((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(len(self), *shape)


def uniform_at(keys: Tensor, first: Tensor, n: int) -> Tensor:
    """Draws ``first`` to ``first`` + n - 1 of the streams with these keys, as ``Draws.uniform`` would
    make them; ``keys`` and ``first`` are int64 (batch,), the result float32 (batch, n).

    Nothing but the keys' own device is needed, so a loop on a GPU does not wait for the host.
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
    """Seed the global generators, and restore their states afterwards."""
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device.index or 0] if device.type == "cuda" else []):
        seed_generators(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


def _child(keys: np.ndarray, number: np.ndarray) -> np.ndarray:
    """The keys of the streams that ``number`` leads to from ``keys``."""
    with np.errstate(over="ignore"):
        return _mix(keys + _mix(number.astype(np.uint64) * _GOLDEN + _GOLDEN))


def _mix(z: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser on uint64, which wraps around by design."""
    z = (z ^ (z >> np.uint64(30))) * _FACTORS[0]
    z = (z ^ (z >> np.uint64(27))) * _FACTORS[1]
    return z ^ (z >> np.uint64(31))


def _signed(z: np.uint64) -> int:
    """The int64 of the same bits: torch multiplies no unsigned numbers, but wraps around as they do."""
    return int(z.view(np.int64))


def _shifted(z: Tensor, bits: int) -> Tensor:
    """int64 z shifted to the right as if it had no sign."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)
