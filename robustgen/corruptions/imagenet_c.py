"""ImageNet-C by the package imagecorruptions, one image at a time, with random draws per sample.

A private copy of its code is loaded and patched: with current numpy and scikit-image, three of its types
(glass_blur, gaussian_blur, fog) fail for removed names, and its random numbers come from numpy's global
generator or, for impulse noise, from the system's entropy.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustgen.draws import Draws

MIN_SIDE = 64
"""The constants are for images of 224x224 pixels; much smaller ones would be erased."""
REMEDY = "pip install 'robustgen[imagecorruptions]'"


def missing() -> str | None:
    """An error message that lists the missing packages; None if ImageNet-C can be computed."""
    lacking = [
        name for name in ("imagecorruptions", "pkg_resources", "cv2", "skimage") if not _installed(name)
    ]
    return f"ImageNet-C needs {', '.join(lacking)}, which is not installed: {REMEDY}" if lacking else None


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def corrupt(x: Tensor, name: str, severity: int, draws: Draws) -> Tensor:
    """x (batch, 3, height, width) in [0, 1], rounded to 8 bits and corrupted by the type ``name``."""
    from PIL.Image import fromarray

    levels = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    out = np.empty_like(levels)
    for made, picture, key in zip(out, levels, draws.keys().tolist(), strict=True):
        code = seeded_package(np.random.RandomState(key & 0xFFFFFFFF))
        made[:] = np.uint8(getattr(code, name)(fromarray(picture), severity))
    return torch.from_numpy(out).permute(0, 3, 1, 2).float() / 255


def seeded_package(numbers: Any) -> Any:
    """The patched package, drawing from ``numbers`` (with the interface of numpy.random)."""
    code = _load()
    code.np.random = numbers
    code.sk.util.rng = np.random.default_rng(numbers.randint(2**31))
    return code


@cache
def _load() -> Any:
    import skimage.color
    import skimage.filters
    import skimage.util

    package = importlib.util.find_spec("imagecorruptions")
    assert package is not None
    assert package.origin is not None
    folder = Path(package.origin).parent
    spec = importlib.util.spec_from_file_location("_imagecorruptions", folder / "corruptions.py")
    assert spec is not None
    assert spec.loader is not None
    code: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)

    util = SimpleNamespace(rng=None)
    util.random_noise = lambda image, **options: skimage.util.random_noise(image, rng=util.rng, **options)
    code.sk = SimpleNamespace(color=skimage.color, util=util)
    code.np = _Numpy()
    code.gaussian = gaussian
    code.resource_filename = lambda _, name: str(folder / name)
    return code


class _Numpy:
    """numpy with the removed name float_ and a replaceable ``random``."""

    float_ = np.float64
    random: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def gaussian(image: np.ndarray, sigma: Any, multichannel: bool = False, **options: Any) -> np.ndarray:
    """scikit-image's Gaussian filter with its former argument ``multichannel``."""
    from skimage import filters

    return filters.gaussian(image, sigma, channel_axis=-1 if multichannel else None, **options)
