"""Snow, frost, fog and spatter."""

from __future__ import annotations

import importlib.util
import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustgen.corruptions.blur import angles, directional_blur, smooth, truncate_to_8_bits, zoom
from robustgen.draws import Draws

FROSTS = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
"""The photographs; there is a sixth, which the original never draws."""
SHRUNK = 0.2  # the scale of the photographs of frost in CIFAR-10-C
LUMA = (0.299, 0.587, 0.114)
WATER, MUD = (175, 238, 238), (63, 42, 20)


def snow(x: Tensor, constants: tuple[float, ...], draws: Draws) -> Tensor:
    """Motion-blurred flakes over a whitened image, added once as they are and once rotated by 180 degrees."""
    mean, spread, size, threshold, radius, sigma, kept = constants
    flakes = mean + spread * draws.normal(1, *x.shape[2:]).double().numpy()
    flakes = zoom(flakes, size)
    layer = torch.from_numpy(truncate_to_8_bits(np.where(flakes < threshold, 0, flakes)))
    layer = directional_blur(layer, int(radius), sigma, angles(draws, -135, -45))
    white = (1.5 * grey(x) + 0.5).maximum(x)
    return kept * x + (1 - kept) * white + layer + layer.rot90(2, (2, 3))


def frost(x: Tensor, constants: tuple[float, float, float], draws: Draws) -> Tensor:
    """A random crop of a scaled photograph of frost, added to the image."""
    kept, weight, scale = constants
    height, width = x.shape[2:]
    pictures = frost_pictures(scale)
    which = (draws.uniform(1)[:, 0] * len(pictures)).long().tolist()
    layers = []
    for number, place in zip(which, draws.uniform(2).tolist(), strict=True):
        picture = pictures[number]
        top, left = (
            int(u * (side - own))
            for u, side, own in zip(place, picture.shape[1:], (height, width), strict=True)
        )
        layers.append(picture[:, top : top + height, left : left + width])
    layer = torch.stack(layers) if layers else torch.zeros_like(x)
    return kept * x + weight * (layer if x.shape[1] == 3 else grey(layer))


@cache
def frost_pictures(scale: float = SHRUNK) -> list[Tensor]:
    """The photographs of an installed imagecorruptions (3, height, width), float64 in [0, 1], scaled."""
    from PIL import Image

    folder = frost_folder()
    assert folder is not None
    found = []
    for name in FROSTS:
        pixels = np.asarray(Image.open(folder / name).convert("RGB"))
        if scale == SHRUNK:
            # Linear interpolation at 1 / 5, without smoothing, takes the middle pixel of each 5x5 square.
            step = round(1 / scale)
            small = pixels[step // 2 :: step, step // 2 :: step]
        else:
            import cv2

            size = [math.ceil(side * scale) for side in pixels.shape[1::-1]]
            small = cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC)
        found.append(torch.from_numpy(small / 255.0).permute(2, 0, 1))
    return found


def frost_size(scale: float) -> tuple[int, int]:
    """The least height and the least width of the scaled photographs."""
    heights, widths = zip(*(picture.shape[1:] for picture in frost_pictures(scale)), strict=True)
    return min(heights), min(widths)


def frost_folder() -> Path | None:
    """The folder of the photographs of frost; None if imagecorruptions is not installed."""
    package = importlib.util.find_spec("imagecorruptions")
    if package is None or package.origin is None:
        return None
    folder = Path(package.origin).parent / "frost"
    return folder if all((folder / name).is_file() for name in FROSTS) else None


def fog(x: Tensor, constants: tuple[float, float], draws: Draws) -> Tensor:
    """Plasma clouds added, then scaled so that the image's maximum is kept."""
    strength, decay = constants
    height, width = x.shape[2:]
    side = 1 << (max(height, width) - 1).bit_length()
    layer = plasma(draws, side, decay)[:, None, :height, :width]
    highest = x.amax((1, 2, 3), keepdim=True)
    return (x + strength * layer) * highest / (highest + strength)


def plasma(draws: Draws, side: int, decay: float) -> Tensor:
    """Clouds (batch, side, side) in [0, 1] by the diamond-square algorithm on a torus.

    ``side`` is a power of two. Each new point is the mean of four neighbours plus noise, whose amplitude
    ``wobble`` is divided by ``decay`` at each scale.
    """
    clouds = torch.zeros(len(draws), side, side, dtype=torch.float64)
    step, wobble = side, 100.0

    def near(corners: Tensor) -> Tensor:
        noise = 2 * draws.uniform(*corners.shape[1:]).double() - 1
        return corners / 4 + wobble**2 * noise

    while step >= 2:
        half = step // 2
        corners = clouds[:, ::step, ::step]
        rows = corners + corners.roll(-1, 1)
        clouds[:, half::step, half::step] = near(rows + rows.roll(-1, 2))
        middles = clouds[:, half::step, half::step]
        clouds[:, ::step, half::step] = near(middles + middles.roll(1, 1) + corners + corners.roll(-1, 2))
        clouds[:, half::step, ::step] = near(middles + middles.roll(1, 2) + corners + corners.roll(-1, 1))
        step, wobble = half, wobble / decay
    clouds -= clouds.amin((1, 2), keepdim=True)
    return clouds / clouds.amax((1, 2), keepdim=True)


def spatter(x: Tensor, constants: tuple[float, ...], draws: Draws) -> Tensor:
    """Drops of water, or of mud, on the lens."""
    mean, spread, sigma, threshold, strength, mud = constants
    liquid = smooth(mean + spread * draws.normal(*x.shape[2:]).double().numpy(), sigma)
    liquid = np.where(liquid < threshold, 0, liquid)
    if mud:
        thick = smooth((liquid > threshold).astype(np.float64), strength)
        cover = torch.from_numpy(np.where(thick < 0.8, 0, thick))[:, None]
        return x * (1 - cover) + cover * colour(MUD, x)
    layers = [water(one) for one in np.floor(liquid * 255).astype(np.uint8)]
    layer = torch.from_numpy(np.stack(layers)) if layers else torch.zeros_like(x[:, 0])
    return x + strength * layer[:, None] * colour(WATER, x)


def water(liquid: np.ndarray) -> np.ndarray:
    """Brightness of drops in [0, 1], given 8-bit levels of the liquid (height, width).

    Drops are lit from one side, by the distance to their edges; 0 without drops.
    """
    import cv2

    edges = 255 - cv2.Canny(liquid, 50, 150)
    distance = cv2.distanceTransform(edges, cv2.DIST_L2, 5).clip(max=20)
    relief = cv2.equalizeHist(cv2.blur(distance, (3, 3)).astype(np.uint8))
    light = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    shine = liquid * cv2.blur(cv2.filter2D(relief, cv2.CV_8U, light), (3, 3)).astype(np.float64)
    return shine / max(shine.max(), 1e-12)


def grey(x: Tensor) -> Tensor:
    """The luma (batch, 1, height, width) of colour images; grey ones as they are."""
    if x.shape[1] == 1:
        return x
    return (x * torch.tensor(LUMA, dtype=x.dtype).view(1, 3, 1, 1)).sum(1, keepdim=True)


def colour(levels: tuple[int, int, int], like: Tensor) -> Tensor:
    """A colour (1, 3, 1, 1) from 8-bit levels; its luma if ``like`` is grey."""
    one = torch.tensor(levels, dtype=like.dtype).view(1, 3, 1, 1) / 255
    return one if like.shape[1] == 3 else grey(one)
