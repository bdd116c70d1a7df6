"""What attacks of other libraries share: their options, a fork of the global generators, the judgement."""

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
from robustgen.classifiers.base import Classifier, serving
from robustgen.draws import Draws, forked_generators
from robustgen.errors import UserError
from robustgen.perturb import Attack, Perturbed, enforce_budget
from robustgen.registry import slug
from robustgen.threat import ThreatModel

# Projections in float32 end this much, relative to eps, beyond it; that is rounding, and no other picture.
ROUNDING = 1e-5


class OutsideAttack(Attack):
    """An attack of another library, within the threat that an evaluation is for.

    It gets the pictures that are classified right, of a stochastic model all, in one batch, inside a fork
    of the global generators that is seeded by chunk. Many outside attacks look for the nearest wrong
    picture and know of no budget: one that lies beyond eps, or outside the box, is no success here, and is
    not projected either, for what that would be nobody has looked for. The clean picture comes back
    wherever nothing within the budget was found, and where it was wrong from the start; of a stochastic
    model, wherever what was found is no more wrong by the mean over draws.

    ``bounded``: whether it is given eps. Then to go beyond is a mistake, and said of the samples; so are
    pictures of NaN or infinite pixels always, which count as the clean ones.
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
        # the name has the options in short, so that two values may share it
        return super().detail() | ({"options": self.options} if self.options else {})

    @abstractmethod
    def generate(self, model: ClassifierModule, x: Tensor, y: Tensor, seed: int) -> Tensor:
        """What the outside attack makes of pictures x (batch, ...) that a net takes for their labels y."""

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
            images, near = self._within(clean, torch.where(finite.view(-1, 1, 1, 1), images, clean))
            progress.judge(rows, images, self.name)
        out_of_budget = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        out_of_budget[rows] = (~near & self.bounded) | ~finite
        return Perturbed(progress.images, out_of_budget=out_of_budget)

    def _generate(self, model: ClassifierModule, x: Tensor, y: Tensor, seed: int) -> Tensor:
        try:
            return self.generate(model, x, y, seed)
        except UserError:
            raise
        except Exception as error:  # it may fail in its own way over an option, a shape, a start not found
            raise UserError(
                f"{self.title} failed: {type(error).__name__}: {error}",
                where=f"options {self.options}" if self.options else "its default options",
                remedy="the words are the outside package's; other options, or another attack, may do",
            ) from error

    def _within(self, x: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """The pictures that are within the budget but for rounding, and the clean ones for the rest; which
        were, (batch,)."""
        beyond = max(self.threat.eps * ROUNDING, self.threat.slack(x[0].numel()))
        near = self.threat.distance(x, images) <= self.threat.eps + beyond
        return torch.where(near.view(-1, 1, 1, 1), enforce_budget(self.threat, x, images).images, x), near


class ClassifierModule(nn.Module):
    """A classifier as outside attacks want it: a module with parameters, which they ask for its device."""

    def __init__(self, model: Classifier, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self.num_classes = model.num_classes
        self.place = nn.Parameter(torch.empty(0, device=device), requires_grad=False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Nothing: what is attacked is judged in eval mode, before this attack and after it."""
        return super().train(False)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The parameters, the one whose device is the pictures' first."""
        yield self.place
        yield from self.model.parameters(recurse)

    def forward(self, x: Tensor) -> Tensor:
        if self.model.stochastic:
            return self.model.logits(x)
        with (
            torch.random.fork_rng()
        ):  # a model that seeds the generators must not set the attack's draws back
            return self.model.logits(x)


# What YAML can write.
YAML: dict[Any, Any] = {float: strict.Number, int: int, bool: bool, str: str, type(None): None}
# In the libraries whole numbers are counts of something, or the axis of the channels, which is 1.
COUNTS = YAML | {int: Annotated[int, Field(gt=0)]}


def options_of(
    outside: Callable[..., Any], ours: Collection[str], title: str, given: Mapping[str, Any],
    kinds: Mapping[Any, Any] = COUNTS,
) -> AttackOptions:  # fmt: skip
    """Options of an outside class or function, validated by its signature; ``ours`` are set by the threat or
    the run, ``kinds`` says what each type takes.

    Raises UserError for an option that the class does not have, or whose value has the wrong type.
    """
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(outside, eval_str=True).parameters.items():
        kind = _kind(parameter, kinds)
        if kind is not None and name not in ours:
            fields[name] = (kind, ... if parameter.default is parameter.empty else parameter.default)
    model = create_model("OutsideOptions", __base__=AttackOptions, **fields)
    return model.validated(given, title)


# torchattacks writes no types: its defaults give them, but for these, whose defaults are whole numbers.
REAL = {"c", "kappa", "nsig", "scale"}


def _kind(parameter: inspect.Parameter, kinds: Mapping[Any, Any]) -> Any:
    """The type of an option that YAML can write, None for other parameters."""
    kind = parameter.annotation
    if kind is parameter.empty:
        kind = float if parameter.name in REAL else type(parameter.default)
    choices = get_args(kind) if get_origin(kind) is Union else (kind,)
    if not all(choice in kinds or get_origin(choice) is Literal for choice in choices):
        return None
    return Union[tuple(kinds.get(choice, choice) for choice in choices)]  # noqa: UP007


def _short(value: object) -> str:
    return format(value, "g") if isinstance(value, float) else str(value)
