"""Pictures for benchmarks that need more of them than a small test split has."""

from __future__ import annotations

import torch
from torch import Tensor

from robustgen import load_data


def first(source: str, n: int) -> tuple[Tensor, Tensor]:
    """The first n pictures (n, channels, height, width) and labels (n,) of a data set: of its test
    split, then of its calibration split, which no model was trained on either."""
    parts = [load_data(source), load_data(source, "calibration")]
    return torch.cat([p.images for p in parts])[:n], torch.cat([p.labels for p in parts])[:n]
