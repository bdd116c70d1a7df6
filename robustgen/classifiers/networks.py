"""A residual network for small images, from 8x8 grey to 32x32 colour."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from robustgen.errors import UserError

NormLayer = Literal["batch", "group", "none"]
Activation = Literal["relu", "gelu", "silu"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": lambda width: nn.GroupNorm(min(8, width), width),
    "none": lambda width: nn.Identity(),
}


def choose(kind: str, name: str, table: dict[str, Callable[..., nn.Module]]) -> Callable[..., nn.Module]:
    """``table[name]``, or a UserError that lists the names; ``kind`` says what they are of."""
    if name not in table:
        raise UserError(f"unknown {kind} of a network", expected=", ".join(table), got=name)
    return table[name]


class Block(nn.Module):
    """Pre-activation residual block (He et al. 2016b): x + conv(act(norm(conv(act(norm(x)))))).

    The second convolution is initialised to 0, so that the block starts as the identity (Zhang et al. 2019,
    Fixup), without which a deep network without norm layers does not train.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, norm: NormLayer, activation: Activation
    ) -> None:
        super().__init__()
        make_norm = choose("norm", norm, NORMS)
        act = choose("activation", activation, ACTIVATIONS)
        self.branch = nn.Sequential(
            make_norm(inputs), act(), nn.Conv2d(inputs, outputs, 3, stride, 1),
            make_norm(outputs), act(), nn.Conv2d(outputs, outputs, 3, 1, 1),
        )  # fmt: skip
        nn.init.zeros_(self.last.weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            # average pooling, not striding: every pixel has an equal share in the gradient;
            # ceil_mode keeps an odd last row or column, as the strided convolution does
            pool = nn.AvgPool2d(stride, ceil_mode=True) if stride != 1 else nn.Identity()
            self.shortcut = nn.Sequential(pool, nn.Conv2d(inputs, outputs, 1))

    @property
    def last(self) -> nn.Module:
        """The last convolution; the block is the identity if it is 0."""
        return self.branch[5]

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.branch(x)


class ResNet(nn.Module):
    """Images (batch, channels, height, width) in [0, 1] to (batch, outputs).

    ``width``: channels of the first stage, doubled in each further one; ``blocks``: residual blocks per
    stage, each stage after the first at half the resolution; ``pool``: side of the feature grid that the
    final linear layer sees (1: global average pooling).
    """

    def __init__(
        self,
        outputs: int,
        input_shape: tuple[int, int, int],
        *,
        width: int = 32,
        blocks: tuple[int, ...] = (1, 1),
        norm: NormLayer = "none",
        activation: Activation = "silu",
        pool: int = 1,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(input_shape[0], width, 3, 1, 1)]
        inputs = width
        for stage, count in enumerate(blocks):
            for block in range(count):
                channels = width * 2**stage
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(Block(inputs, channels, stride, norm, activation))
                inputs = channels
        layers += [choose("norm", norm, NORMS)(inputs), choose("activation", activation, ACTIVATIONS)()]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(pool), nn.Flatten())
        self.head = nn.Linear(inputs * pool**2, outputs)

    def forward(self, x: Tensor) -> Tensor:
        # [0, 1] to [-1, 1], whatever the mean of the data
        return self.head(self.features(2 * x - 1))
