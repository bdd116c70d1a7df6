"""Our batched corruptions beside imagecorruptions, which takes a picture at a time: seconds, and agreement.

    python benchmarks/corruptions.py [--n 1000] [--rounds 10] [--agreement] [--json]

Speed needs ROBUSTGEN_DATA (CIFAR-10). Both sides run in this process on one thread, and take turns (the
seconds are those of the processor, which other work on the machine does not take part in): the
pictures are cut into rounds, each type is timed on both sides of every round, and severities 1 to 5 take
turns from round to round. A ratio is the median over severities of the ratio at each, where a severity's
time is the least of its rounds, since other work on the machine only ever adds. ``ratios`` has ours with
CIFAR-10-C's constants, which is what a report of CIFAR-10 runs; ``same_ratios`` has ImageNet-C's, the
package's own, on both sides.

With a current numpy and scikit-image, imagecorruptions 1.1.2 fails at glass_blur and gaussian_blur
(``multichannel``) and at fog (``numpy.float_``): here they call the equivalents that work.

``--agreement`` prints instead how near our code with ImageNet-C's constants comes to the package, on
photographs of 64 pixels: the mean absolute difference in grey levels at equal draws, and for all types
how far mean and variance of the error lie apart at draws of their own (the mean as a share of the
error's root mean square).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustgen.classifiers.base import Classifier
from robustgen.corruptions import CORRUPTIONS, SEVERITIES, Corruption, imagenet_c
from robustgen.data import load
from robustgen.draws import Draws

OWN_DRAWS = ("shot_noise", "impulse_noise")
"""What the package draws by other means than a uniform or normal number, so that draws cannot be equal."""


def ours(type_: str, severity: int, x: Tensor, scope: str = "ours") -> Tensor:
    """Pictures x (batch, 3, height, width) under a corruption, as samples 0, 1, ..."""
    draws = Draws(0, scope, torch.arange(len(x)))
    return Corruption(type_, severity)(Classifier(), x, torch.zeros(len(x)), draws).images


# --- speed -----------------------------------------------------------------------------------------


def package() -> Callable[..., np.ndarray]:
    """``imagecorruptions.corrupt`` with what fails repaired."""
    np.float_ = np.float64  # type: ignore[attr-defined]
    import imagecorruptions
    from imagecorruptions import corruptions

    corruptions.gaussian = imagenet_c.gaussian
    return imagecorruptions.corrupt


def speed(x: Tensor, rounds: int) -> dict[str, Any]:
    """Seconds a picture and ratios by type, both sides taking turns."""
    corrupt = package()
    seconds: dict[tuple[str, str, int], list[float]] = {}
    for number, part in enumerate(x.chunk(rounds)):
        severity = SEVERITIES[number % 5]
        levels = (part * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for name in CORRUPTIONS:
            began = time.process_time()
            for picture in levels:
                corrupt(picture, corruption_name=name, severity=severity)
            spent = {"theirs": time.process_time() - began}
            for side, type_ in (("ours", name), ("same", f"imagenet-constants:{name}")):
                ours(type_, severity, part[:1])  # tables that are made once
                began = time.process_time()
                ours(type_, severity, part)
                spent[side] = time.process_time() - began
            for side, time_ in spent.items():
                seconds.setdefault((side, name, severity), []).append(time_ / len(part))
    best = {key: min(times) for key, times in seconds.items()}
    return {
        "n": len(x),
        "milliseconds": {
            side: {name: 1e3 * _mean(best, side, name) for name in CORRUPTIONS}
            for side in ("theirs", "ours", "same")
        },
        **_ratios(best, "ours", ""),
        **_ratios(best, "same", "same_"),
    }


def _mean(best: dict[tuple[str, str, int], float], side: str, name: str) -> float:
    return statistics.mean(t for (s, n, _), t in best.items() if (s, n) == (side, name))


def _ratios(best: dict[tuple[str, str, int], float], side: str, prefix: str) -> dict[str, Any]:
    severities = sorted({severity for _, _, severity in best})
    ratios = {
        name: statistics.median(best["theirs", name, s] / best[side, name, s] for s in severities)
        for name in CORRUPTIONS
    }
    total = {who: sum(_mean(best, who, name) for name in CORRUPTIONS) for who in ("theirs", side)}
    return {
        f"{prefix}all_ratio": total["theirs"] / total[side],
        f"{prefix}median_ratio": statistics.median(ratios.values()),
        f"{prefix}ratios": ratios,
    }


# --- agreement -------------------------------------------------------------------------------------


class Agreement(NamedTuple):
    """How near the package is, in grey levels at equal draws (None where there are none), and how far
    mean (a share of the error's root mean square) and variance (a share) lie apart at others."""

    difference: float | None
    mean: float
    variance: float


def agreement(name: str, severity: int, x: Tensor) -> Agreement:
    """Our code with ImageNet-C's constants beside the package's, on pictures x (batch, 3, side, side)."""
    type_ = f"imagenet-constants:{name}"
    levels = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    difference = None
    if name not in OWN_DRAWS:
        theirs = [
            _under(name, severity, picture, Replay(Draws(0, "ours", np.array([sample])), name, picture.shape))
            for sample, picture in enumerate(levels)
        ]
        found = (ours(type_, severity, x) * 255).round().permute(0, 2, 3, 1).numpy()
        difference = float(np.abs(found - np.stack(theirs)).mean())
    mine = (ours(type_, severity, x, "others") * 255).round().permute(0, 2, 3, 1).numpy() - levels
    free = [_under(name, severity, picture, np.random.RandomState(i)) for i, picture in enumerate(levels)]
    other = np.stack(free).astype(np.float64) - levels
    size = float(np.sqrt(np.square(other).mean()))
    return Agreement(
        difference, float(mine.mean() - other.mean()) / size, float(mine.var() / other.var()) - 1
    )


def _under(name: str, severity: int, picture: np.ndarray, numbers: Any) -> np.ndarray:
    from PIL.Image import fromarray

    corrupted = getattr(imagenet_c.seeded_package(numbers), name)(fromarray(picture), severity)
    return np.asarray(corrupted).astype(np.uint8)


class Replay:
    """Stands in for numpy.random in the package: serves one sample's draws in the order of our formulas."""

    def __init__(self, draws: Draws, name: str, shape: tuple[int, ...]) -> None:
        self.draws, self.name, self.shape = draws, name, shape
        self.moves: list[np.ndarray] = []

    def normal(self, size: Any, scale: float, loc: float = 0.0) -> np.ndarray:
        """Normal numbers; of a colour picture they are drawn channel by channel."""
        if len(size) == 3:
            return loc + scale * self.draws.normal(size[2], *size[:2])[0].double().numpy().transpose(1, 2, 0)
        return loc + scale * self.draws.normal(*size)[0].double().numpy()

    def uniform(self, low: float, high: float, size: Any = (1,)) -> np.ndarray:
        drawn = low + (high - low) * self.draws.uniform(*size)[0].double().numpy()
        return drawn if size != (1,) else drawn[0]

    def randint(self, low: int, high: int | None = None, size: Any = None) -> Any:
        """Integers; those of glass_blur come a pixel at a time, from the last to the first."""
        if low == 2**31:  # the seed of what is not replayed
            return 0
        if self.name == "glass_blur":
            if not self.moves:
                assert high is not None
                inner = [side - 2 * high for side in self.shape[:2]]
                drawn = (self.draws.uniform(2, *inner)[0] * 2 * high).long() - high
                self.moves = list(drawn.flip(0).flatten(1).T.numpy())
            return self.moves.pop()
        low, high = (0, low) if high is None else (low, high)
        if self.name == "frost" and high > 5:
            if not self.moves:
                self.moves = list(self.draws.uniform(2)[0].numpy()[::-1])
            return int(float(self.moves.pop()) * high)
        return low + int(self.draws.uniform(1)[0, 0] * (high - low))


# --- on the command line ---------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--agreement", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    import cv2

    cv2.setNumThreads(1)
    if arguments.agreement:
        x = load("photos", shape=(3, 64, 64)).images[: min(arguments.n, 64)]
        found = {f"{name}-{s}": agreement(name, s, x)._asdict() for name in CORRUPTIONS for s in SEVERITIES}
        lines = [
            f"{name:22s} {'     ' if a['difference'] is None else format(a['difference'], '5.2f')} levels"
            f"  mean {100 * a['mean']:+6.2f} %  variance {100 * a['variance']:+6.2f} %"
            for name, a in found.items()
        ]
    else:
        found = speed(load("cifar10").images[: arguments.n], arguments.rounds)
        lines = [
            f"{name:18s} {found['milliseconds']['theirs'][name]:7.3f} ms  ours {found['ratios'][name]:6.1f}x"
            f"  with the same constants {found['same_ratios'][name]:6.1f}x"
            for name in CORRUPTIONS
        ]
        lines += [
            f"{what}: median {found[f'{key}median_ratio']:.1f}x, all together {found[f'{key}all_ratio']:.1f}x"
            for what, key in (("ours", ""), ("with the same constants", "same_"))
        ]
    print(json.dumps(found, indent=1) if arguments.json else "\n".join(lines))


if __name__ == "__main__":
    main()
