"""ImageNet-C through the package imagecorruptions, a picture at a time, with draws that belong to the sample.

A copy of its code is loaded under a name of our own, so that nobody else's copy is changed: with a current
numpy and scikit-image three of its types fail for names that are gone (glass_blur, gaussian_blur, fog), and
its random numbers come from numpy's global generator, impulse noise's from the system's entropy.
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
"""Its constants are for pictures of 224 pixels; of much smaller ones they leave little."""
REMEDY = "pip install 'robustgen[imagecorruptions]'"


def missing() -> str | None:
    """What ImageNet-C needs and this machine lacks."""
    lacking = [name for name in ("imagecorruptions", "pkg_resources", "cv2", "skimage") if not _there(name)]
    return f"ImageNet-C needs {', '.join(lacking)}, which is not installed: {REMEDY}" if lacking else None


def _there(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def corrupt(x: Tensor, name: str, severity: int, draws: Draws) -> Tensor:
    """x (batch, 3, height, width) in [0, 1], taken as 8-bit pictures, under a type at a severity."""
    from PIL.Image import fromarray

    levels = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    out = np.empty_like(levels)
    for made, picture, key in zip(out, levels, draws.keys().tolist(), strict=True):
        code = seeded_package(np.random.RandomState(key & 0xFFFFFFFF))
        made[:] = np.uint8(getattr(code, name)(fromarray(picture), severity))
    return torch.from_numpy(out).permute(0, 3, 1, 2).float() / 255


def seeded_package(numbers: Any) -> Any:
    """The package's code, which draws from these numbers (those of numpy.random)."""
    code = _loaded()
    code.np.random = numbers
    code.sk.util.rng = np.random.default_rng(numbers.randint(2**31))
    return code


@cache
def _loaded() -> Any:
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
    """numpy with a name that is gone, and with random numbers that can be replaced."""

    float_ = np.float64
    random: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def gaussian(image: np.ndarray, sigma: Any, multichannel: bool = False, **options: Any) -> np.ndarray:
    """scikit-image's filter, which the argument ``multichannel`` has left."""
    from skimage import filters

    return filters.gaussian(image, sigma, channel_axis=-1 if multichannel else None, **options)
