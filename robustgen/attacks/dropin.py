"""AutoAttack with the reference implementation's interface, for code written against it.

adversary = robustgen.AutoAttack(model, norm="Linf", eps=8 / 255)
x_adv = adversary.run_standard_evaluation(x_test, y_test, bs=250)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

import torch
from rich.console import Console
from torch import Tensor, nn

from robustgen.attacks.autoattack import PLUS, PLUS_BUDGET, STANDARD, AutoAttackParts
from robustgen.audit import AUDIT, audited_indices
from robustgen.classifiers.base import Classifier, PlainClassifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.classifiers.quick import need_bfloat16, quick_copy
from robustgen.draws import Draws
from robustgen.errors import UserError
from robustgen.threat import ThreatModel
from robustgen.types import Norm, Precision

NORMS: dict[str, Norm] = {"Linf": "linf", "L2": "l2", "L1": "l1"}
VERSIONS = {"standard": STANDARD, "plus": PLUS}


class AutoAttack:
    """The signature of the reference's AutoAttack, run by this package's attacks.

    ``model``: anything that maps images in [0, 1] to logits; a module must be in evaluation mode. ``norm``:
    Linf, L2 or L1. ``version``: standard or plus, or custom with ``attacks_to_run``. ``seed``: of all
    random draws (None: 0, so that runs repeat). ``precision``: with "bf16", gradients are computed in
    bfloat16; losses and verdicts always are float32. Work that is saved is audited (see docs/attacks.md).

    After a run, ``broken_by`` has for each image the attack that broke it, None where none did. Raises
    UserError for an unknown norm or version, eps <= 0, images outside [0, 1], and NaN logits.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        norm: str = "Linf",
        eps: float = 0.3,
        seed: int | None = None,
        verbose: bool = True,
        attacks_to_run: Sequence[str] = (),
        version: str = "standard",
        device: str | torch.device | None = None,
        precision: Precision = "float32",
    ) -> None:
        if norm not in NORMS:
            raise UserError("unknown norm", expected=", ".join(NORMS), got=norm)
        if precision not in get_args(Precision):
            raise UserError("unknown precision", expected=", ".join(get_args(Precision)), got=precision)
        if isinstance(model, nn.Module) and model.training:
            raise UserError(
                "the model is in training mode", expected="evaluation mode", remedy="call model.eval()"
            )
        self.model = model
        self.seed = seed or 0
        self.console = Console(quiet=not verbose)
        self.device = device
        self.bfloat16_gradients = precision == "bf16"
        self.attack = _Versions(ThreatModel(NORMS[norm], eps), _parts(version, attacks_to_run), version)
        self.broken_by: list[str | None] = []

    def run_standard_evaluation(
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Adversarial images for x_orig (batch, channels, height, width) with labels y_orig (batch,).

        Where no attack succeeded, the clean image. ``bs``: the most images in a call of the model.
        ``return_labels``: return the model's predictions for them as well.
        """
        if len(x_orig) == 0 or len(x_orig) != len(y_orig):
            raise UserError(
                "images and labels do not match, or there are none", expected="a label for each image",
                got=f"{len(x_orig)} images, {len(y_orig)} labels",
            )  # fmt: skip
        low, high = x_orig.aminmax()
        if not (low >= 0 and high <= 1):
            raise UserError(
                "images lie outside the box", expected="values in [0, 1]",
                got=f"{float(low):g} to {float(high):g}", remedy="normalise inside the model",
            )  # fmt: skip
        device = self.device or x_orig.device
        x, y = x_orig.detach().float().to(device), y_orig.to(device)
        if self.bfloat16_gradients:
            need_bfloat16(x.device)
        model = self._classifier(x[:bs], bs)
        model.begin(len(x), x.device)
        found = self.attack(model, x, y, Draws(self.seed, "autoattack", torch.arange(len(x))))
        assert found.broken_by is not None
        self.broken_by = found.broken_by
        with torch.no_grad():
            labels = model.logits(found.images).argmax(1)
        self._print(model, found.broken_by, labels == y)
        x_adv = found.images.to(x_orig.device)
        return (x_adv, labels.to(y_orig)) if return_labels else x_adv

    def _classifier(self, example: Tensor, bs: int) -> FixedBatch:
        """The model in batches of at most ``bs``, never padded, with its quick copy."""
        module = self.model if isinstance(self.model, nn.Module) else _Function(self.model)
        with torch.no_grad():
            classes = module(example[:1]).shape[1]
        shape = example.shape[1:]
        plain = PlainClassifier(module, classes, (shape[0], shape[1], shape[2])).eval()
        with torch.no_grad():  # upstream checks for randomness here too
            plain.stochastic = not torch.equal(plain.logits(example), plain.logits(example))
        copied = quick_copy(plain, example) if isinstance(self.model, nn.Module) else None
        return FixedBatch(
            plain, bs, quick=copied, bfloat16_gradients=self.bfloat16_gradients, sizes=range(1, bs + 1)
        )

    def _print(self, model: Classifier, broken_by: list[str | None], right: Tensor) -> None:
        """Print the robust accuracy after each attack."""
        n = len(broken_by)
        broken = torch.tensor([name is not None for name in broken_by], device=right.device)
        left = int((broken | right).sum())
        self.console.print(f"clean accuracy: {left / n:.2%} (n = {n})")
        for name in dict.fromkeys(self.attack.stage_names):
            left -= broken_by.count(name)
            self.console.print(f"robust accuracy after {name}: {left / n:.2%}")
        if self.bfloat16_gradients or not (self.attack.thorough or model.stochastic):
            found = broken_by.count(AUDIT)
            checked = len(audited_indices(left))
            self.console.print(f"audit in full and in float32: {found} of {checked} survivors broken")


class _Versions(AutoAttackParts):
    """The parts of a version, or those that the user lists, which then are thorough."""

    def __init__(self, threat: ThreatModel, parts: tuple[str, ...], version: str) -> None:
        self.title, self.parts = version, parts
        # The reference's constructor sets these, and only its standard version changes them.
        budget = {} if version == "standard" else PLUS_BUDGET
        self.defaults = budget | {"thorough": version == "custom"}
        self.shrinking = version == "standard"
        super().__init__(threat)


class _Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _parts(version: str, attacks_to_run: Sequence[str]) -> tuple[str, ...]:
    if version in VERSIONS and not attacks_to_run:
        return VERSIONS[version]
    unknown = sorted(set(attacks_to_run) - set(PLUS))
    if version != "custom" or not attacks_to_run or unknown:
        raise UserError(
            "unknown version of AutoAttack, or attacks_to_run does not fit it",
            expected=f"{', '.join(VERSIONS)}, or custom with attacks_to_run from: {', '.join(PLUS)}",
            got=f"{version} with attacks_to_run={list(attacks_to_run)}",
        )
    return tuple(attacks_to_run)
