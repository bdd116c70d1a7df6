"""What attacks of other libraries share: options, a fork of the global random generators, and the
judgement."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import torch
from pydantic import Field, create_model
from torch import Tensor, nn

from robustgen import strict
from robustgen.attacks.options import AttackOptions
from robustgen.attacks.progress import Progress
from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import serving
from robustgen.draws import Draws, forked_generators
from robustgen.errors import UserError
from robustgen.perturb import Attack, Perturbed, enforce_budget
from robustgen.registry import slug
from robustgen.threat import ThreatModel

ROUNDING = 1e-5
"""By how much, relative to eps, a projection in float32 may end outside the ball."""


class OutsideAttack(Attack):
    """An attack of another library, for one threat model.

    It gets the images that are classified right (of a stochastic model: all) in one batch, inside a fork of
    the global random generators that is seeded by chunk. Many outside attacks look for the nearest
    misclassified image and know no budget. An image beyond eps is no success, and is not projected either,
    since the attack did not search for the projection; pixels outside the box are clipped. The clean image is
    returned where nothing was found within the budget, and where it was misclassified already; for a
    stochastic model, also where what was found is not more wrong by the mean over draws.

    ``bounded``: whether the attack is given eps. Going beyond eps then is a fault of the attack, and is
    reported for each sample (``out_of_budget``), as NaN and infinite pixels always are.
    """

    seeded_by_chunk = True
    bounded = True

    def __init__(self, title: str, threat: ThreatModel, options: AttackOptions) -> None:
        super().__init__(threat)
        self.title = title
        self.options = options.model_dump(exclude_unset=True)
        changed = options.model_dump(exclude_defaults=True)
        self.name = "-".join(
            [slug(title), *(slug(f"{key}{_short(value)}") for key, value in changed.items())]
        )

    def detail(self) -> dict[str, Any]:
        # the name abbreviates the options' values, so that two of them may share it
        return super().detail() | ({"options": self.options} if self.options else {})

    @abstractmethod
    def generate(self, model: ClassifierModule, x: Tensor, y: Tensor, seed: int) -> Tensor:
        """What the outside attack returns for images x (batch, ...), in the box, with labels y."""

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> Perturbed:
        seed = draws.integer()
        progress = Progress(model, x, y)
        rows = progress.remaining()
        if len(rows) == 0:
            return Perturbed(progress.images)
        clean = x[rows]
        with forked_generators(seed, x.device):
            with serving(model, rows):
                module = ClassifierModule(model, x.device)
                images = self._generate(module, clean.clamp(*self.threat.box), y[rows], seed).detach()
            finite = images.isfinite().flatten(1).all(1)
            images, within = self._within(clean, torch.where(finite.view(-1, 1, 1, 1), images, clean))
            progress.judge(rows, images, self.name)
        out_of_budget = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        out_of_budget[rows] = (~within & self.bounded) | ~finite
        return Perturbed(progress.images, out_of_budget=out_of_budget)

    def _generate(self, model: ClassifierModule, x: Tensor, y: Tensor, seed: int) -> Tensor:
        try:
            return self.generate(model, x, y, seed)
        except UserError:
            raise
        except Exception as error:  # outside code may raise anything
            raise UserError(
                f"{self.title} failed: {type(error).__name__}: {error}",
                where=f"options {self.options}" if self.options else "its default options",
                remedy="the message is the outside package's; try other options or another attack",
            ) from error

    def _within(self, x: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """The images that are within eps up to rounding, clipped to the box, the clean ones in place of the
        others; and which were within eps, (batch,)."""
        tolerance = max(self.threat.eps * ROUNDING, self.threat.slack(x[0].numel()))
        within = self.threat.distance(x, images) <= self.threat.eps + tolerance
        return torch.where(within.view(-1, 1, 1, 1), enforce_budget(self.threat, x, images).images, x), within


class ClassifierModule(nn.Module):
    """A classifier as the module that outside attacks expect: with parameters, whose device they use."""

    def __init__(self, model: Classifier, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self.num_classes = model.num_classes
        self.device_marker = nn.Parameter(torch.empty(0, device=device), requires_grad=False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Does nothing: the model stays in evaluation mode, in which it is judged."""
        return super().train(False)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The parameters, first the one that is on the images' device."""
        yield self.device_marker
        yield from self.model.parameters(recurse)

    def forward(self, x: Tensor) -> Tensor:
        if self.model.stochastic:
            return self.model.logits(x)
        with torch.random.fork_rng():  # a model that seeds the generators must not reset the attack's draws
            return self.model.logits(x)


YAML_TYPES: dict[Any, Any] = {float: strict.Number, int: int, bool: bool, str: str, type(None): None}
"""The types of options that YAML can express, and how their values are validated."""
LIBRARY_TYPES = YAML_TYPES | {int: Annotated[int, Field(gt=0)]}
"""The same for the libraries, whose integers are counts of something, or the axis of the channels, which is
1."""


def options_of(
    outside: Callable[..., Any], reserved: Collection[str], title: str, given: Mapping[str, Any],
    types: Mapping[Any, Any] = LIBRARY_TYPES,
) -> AttackOptions:  # fmt: skip
    """The options ``given`` for an outside class or function, validated by its signature.

    ``reserved``: parameters that the threat or the run sets. Raises UserError for an option that the
    signature does not have, or whose value has the wrong type.
    """
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(outside, eval_str=True).parameters.items():
        kind = _option_type(parameter, types)
        if kind is not None and name not in reserved:
            fields[name] = (kind, ... if parameter.default is parameter.empty else parameter.default)
    model = create_model("OutsideOptions", __base__=AttackOptions, **fields)
    return model.validated(given, title)


FLOATS = {"c", "kappa", "nsig", "scale"}
"""Parameters of torchattacks that are floats with an integer default. It annotates no types: defaults give
them."""


def _option_type(parameter: inspect.Parameter, types: Mapping[Any, Any]) -> Any:
    """How to validate a parameter's value; None for a parameter that YAML cannot express."""
    kind = parameter.annotation
    if kind is parameter.empty:
        kind = float if parameter.name in FLOATS else type(parameter.default)
    choices = get_args(kind) if get_origin(kind) is Union else (kind,)
    if not all(choice in types or get_origin(choice) is Literal for choice in choices):
        return None
    return Union[tuple(types.get(choice, choice) for choice in choices)]  # noqa: UP007


def _short(value: object) -> str:
    return format(value, "g") if isinstance(value, float) else str(value)
