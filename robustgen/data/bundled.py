"""Data sets that are bundled with installed packages (scikit-learn, matplotlib)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from robustgen.data.dataset import SPLIT_SEED, Dataset, make
from robustgen.types import UNLABELLED, Split


def digits(split: Split, shape: Any, root: Path) -> Dataset:
    """scikit-learn's handwritten digits, 8x8: 1,197 training, 200 calibration and 400 test images."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images / 16).astype(np.float32)[:, None]
    order = np.random.RandomState(SPLIT_SEED).permutation(len(images))
    parts = {"test": order[:400], "calibration": order[400:600], "train": order[600:]}
    keep = parts[split]
    provenance = (
        "scikit-learn's 1,797 handwritten digits (UCI optdigits, test part), native 8x8, 17 grey levels; "
        f"{split}: {len(keep)} by a fixed permutation."
    )
    return make("digits", images[keep], bunch.target[keep], [str(k) for k in range(10)], provenance)


FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol"),
)
LETTERS = "ACEFHJKLMNPRTUVWXYdfhkmnprtw"
"""Without letters that resemble a digit (B D G I O Q S Z a b e g i j l o q s y z), and without c u v x, which
repeat their capitals."""


def letters(split: Split, shape: tuple[int, int, int] | None, root: Path) -> Dataset:
    """Letters rendered in matplotlib's fonts, cropped to their bounding box and scaled down."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    channels, height, width = shape or (1, 28, 28)
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    pictures = []
    for font_name in FONTS:
        font = ImageFont.truetype(str(folder / f"{font_name}.ttf"), 128)
        for letter in LETTERS:
            canvas = Image.new("L", (256, 256))
            ImageDraw.Draw(canvas).text((48, 48), letter, font=font, fill=255)
            ink = canvas.crop(canvas.getbbox())
            side = max(ink.size)
            square = Image.new("L", (side, side))
            square.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
            pictures.append(np.asarray(square.resize((width, height), Image.Resampling.BOX)))
    images = _shuffled(np.stack(pictures))[:, None].repeat(channels, axis=1)
    provenance = (
        f"The letters {LETTERS} in {len(FONTS)} fonts that matplotlib carries, cropped to their ink; "
        "letters that could pass for a digit (among them B D G O Q b g q) are left out."
    )
    return make("letters", images, np.full(len(images), UNLABELLED), (), provenance)


def photos(split: Split, shape: tuple[int, int, int] | None, root: Path) -> Dataset:
    """Crops of the two photographs in scikit-learn, scaled down to ``shape``."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    channels, height, width = shape or (3, 32, 32)
    windows = []
    for photo in load_sample_images().images:
        for top in range(0, photo.shape[0] - 63, 32):
            for left in range(0, photo.shape[1] - 63, 32):
                window = Image.fromarray(photo[top : top + 64, left : left + 64])
                window = window.convert("L" if channels == 1 else "RGB").resize(
                    (width, height), Image.Resampling.BOX
                )
                windows.append(np.asarray(window).reshape(height, width, -1).transpose(2, 0, 1))
    images = _shuffled(np.stack(windows))
    provenance = "64x64 windows of scikit-learn's two photographs (china, flower), scaled down."
    return make("photos", images, np.full(len(images), UNLABELLED), (), provenance)


def _shuffled(images: np.ndarray) -> np.ndarray:
    return images[np.random.RandomState(SPLIT_SEED).permutation(len(images))]
