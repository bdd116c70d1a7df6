"""What tests of corruptions share: pictures, and how to corrupt them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from robustgen.classifiers.base import Classifier
from robustgen.corruptions import Corruption
from robustgen.draws import Draws

# 8-bit pictures, as the original takes them
COLOUR = torch.randint(0, 256, (12, 3, 32, 32), generator=torch.Generator().manual_seed(0)).float() / 255
GREY = torch.randint(0, 17, (12, 1, 8, 8), generator=torch.Generator().manual_seed(1)).float() / 16


def corrupt(name: str, severity: int, x: Tensor, ids: Tensor | None = None) -> Tensor:
    """Pictures x under a corruption, as samples 0, 1, ... or ``ids``."""
    ids = torch.arange(len(x)) if ids is None else ids
    y = torch.zeros(len(x), dtype=torch.int64)
    return Corruption(name, severity)(Classifier(), x, y, Draws(0, f"{name}-{severity}", ids)).images


def levels(x: Tensor) -> np.ndarray:
    """8-bit levels, channels last, as the original's pictures."""
    return (x * 255).round().numpy().astype(np.uint8).transpose(0, 2, 3, 1)


def cut(x: np.ndarray) -> np.ndarray:
    """The original's last step."""
    return np.uint8(np.clip(x, 0, 1) * 255 + 1e-7)


def smooth_pictures(n: int = 6, side: int = 32) -> Tensor:
    """8-bit colour pictures (n, 3, side, side) without sharp edges, as photographs are."""
    noise = torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    large = torch.nn.functional.interpolate(noise, (side, side), mode="bicubic")
    return (large * 0.2 + 0.5).clamp(0, 1).mul(255).round() / 255
