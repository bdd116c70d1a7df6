"""Types of the YAML files of protocols and model cards (recipes: training/recipe.py)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field

from robustgen.errors import UserError
from robustgen.strict import Count, Options, Positive, Slug, Strict
from robustgen.types import Norm


def _own_file(value: str) -> str:
    """A file in the same folder as the file that names it, never outside."""
    if not re.fullmatch(r"\w[\w.-]*", value, re.ASCII):
        raise ValueError("expected the name of a file in the same folder, without a path")
    return value


def own_code(arch: str) -> tuple[str, str] | None:
    """File and name of an architecture ``FILE.py:NAME`` in the card's or recipe's folder; None for an
    architecture of robustgen."""
    file, colon, name = arch.partition(":")
    return (file, name) if colon else None


def _architecture(value: str) -> str:
    """An architecture's name, or ``FILE.py:NAME`` of a file in the same folder."""
    file, colon, name = value.partition(":")
    if colon and not (re.fullmatch(r"\w[\w.-]*\.py", file, re.ASCII) and name.isidentifier()):
        raise ValueError("expected the name of an architecture, or FILE.py:NAME of a file in the same folder")
    return value


OwnFile = Annotated[str, AfterValidator(_own_file)]
Arch = Annotated[str, AfterValidator(_architecture)]


# --- protocols -----------------------------------------------------------------------------------


class CleanSpec(Strict):
    """The test split as it is, and the calibration split, on which a temperature is fitted."""

    kind: Literal["clean"]


class AttackSpec(Strict):
    """An attack by name, at the data's eps for that norm, unless ``eps`` lists others."""

    kind: Literal["attack"]
    attack: str
    norm: Norm
    eps: list[Positive] | None = None
    scales: list[Positive] = Field(default=[1.0], min_length=1)
    """Multiples of the data's eps, for a curve of accuracy against eps; ignored if eps is given."""
    options: dict[str, int | float | str] = Field(default_factory=dict)


class TransferSpec(Strict):
    """Pictures made for the zoo's other models of the data, of less than 10 network calls a picture."""

    kind: Literal["transfer"]
    norm: Literal["linf", "l2"]
    eps: Positive | None = None
    """None: the data's eps for that norm."""
    steps: Count = 50


class CorruptionsSpec(Strict):
    """Corruptions by name and severity; those that need larger pictures are left out with a flag."""

    kind: Literal["corruptions"]
    types: list[str] = Field(min_length=1)
    severities: list[Annotated[int, Field(ge=1, le=5)]] = Field(min_length=1)
    baseline: str | None = None
    """A family: errors are also given relative to its model for the data, if the report has that model."""


class OodSpec(Strict):
    """Out-of-distribution detection on the data's list of foreign sets, each in the data's size and codec.

    ``scores`` and ``detectors`` are computed on foreign and clean pictures besides the scores from logits.
    """

    kind: Literal["ood"]
    scores: list[Literal["gradient", "complexity", "chroma"]] = Field(default_factory=list)
    detectors: list[str] = Field(default_factory=list)
    """Names of robustgen.detectors; they need the extra pytorch-ood."""


class FixedSpec(Strict):
    """A fixed number of steps from every picture, none ending early: calibration and scores under an attack
    of the same strength everywhere.

    ``objective``: ``label`` lowers the label's probability on the data's pictures; ``energy`` and ``msp``
    make the data's pictures look foreign by that score, and foreign ones familiar.
    """

    kind: Literal["fixed"]
    objective: Literal["label", "energy", "msp"]
    norm: Literal["linf", "l2"]
    eps: Positive | None = None
    """None: the data's eps for that norm."""
    steps: Count = 20


class DetectedSpec(Strict):
    """A detector-aware attack: it seeks misclassified pictures that the detector accepts.

    The detector rejects a share ``rejection`` of the calibration pictures by ``score``: log p(x), for
    models that have it, or the confidence, which all have.
    """

    kind: Literal["detected"]
    score: Literal["log_prob", "confidence"]
    norm: Norm
    eps: Positive | None = None
    """None: the data's eps for that norm."""
    rejection: float = Field(default=0.05, ge=0, lt=1)
    n_iter: Count = 100


class GradientsSpec(Strict):
    """Guidance gain and denoising at the data's sigmas, against its reference denoiser."""

    kind: Literal["gradients"]
    pictures: int = Field(default=8, ge=0)
    """How many samples, counted from the first, also get their pictures stored, at the middle sigma."""


class EfficiencySpec(Strict):
    """Guidance gain beside cross-entropy over the data's sweep of noise levels."""

    kind: Literal["efficiency"]


class ExplainedSpec(Strict):
    """The nearest wrong picture in terms of class-conditional denoisers, at three of the data's sigmas:
    the lowest, the middle and the highest."""

    kind: Literal["explained"]
    pictures: int = Field(default=8, ge=0)
    """How many samples, counted from the first, also get their pictures stored."""


class ProbesSpec(Strict):
    """Measures the model's gradients at each picture, for the flags of masked gradients."""

    kind: Literal["probes"]


class ClimbsSpec(Strict):
    """Records APGD's path, and whether its seed decides, for flags; on one sample of ``every``, by its id."""

    kind: Literal["climbs"]
    every: Count = 8


EvaluationSpec = Annotated[
    CleanSpec
    | AttackSpec
    | TransferSpec
    | CorruptionsSpec
    | OodSpec
    | FixedSpec
    | DetectedSpec
    | GradientsSpec
    | EfficiencySpec
    | ExplainedSpec
    | ProbesSpec
    | ClimbsSpec,
    Field(discriminator="kind"),
]


def _distinct(levels: list[float]) -> list[float]:
    names = [f"{level:g}" for level in levels]  # as in the variants of metrics
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise ValueError(f"each level once, and {', '.join(double)} occurs twice or more")
    return levels


Levels = Annotated[list[Positive], AfterValidator(_distinct)]


class DataSettings(Strict):
    """A protocol's settings for a data set."""

    eps: dict[Norm, Positive] = Field(default_factory=dict)
    foreign: list[str] = Field(default_factory=list)
    sigmas: Levels = Field(default_factory=list)
    sweep: Levels = Field(default_factory=list)
    """Noise levels for an integral over them: twelve or more, or none."""
    denoiser: str | None = None
    """Zoo name of the reference denoiser."""


class Protocol(Strict):
    """How models are evaluated: a file of attacks/."""

    name: Slug
    version: int = Field(ge=1)
    summary: str
    reference: str = ""
    cost: str = ""
    """The measured cost of a run, as text, with the hardware."""
    n: Count | None = None
    """How many test samples, from the first; None means all."""
    seed: int = 0
    chunk: Count = 64
    data: dict[str, DataSettings]
    """Settings by data set; ``any`` is for data sets that are not listed."""
    evaluations: list[EvaluationSpec] = Field(min_length=1)

    def settings(self, data: str) -> DataSettings:
        """The settings for a data set, by name."""
        found = of_data(self.data, data)
        if found is None:
            raise UserError(
                f"protocol {self.name!r} has no settings for the data set {data!r}",
                where=f"data of the protocol {self.name!r}",
                expected=f"one of: {', '.join(sorted(self.data))}",
                got=data,
                remedy="choose another protocol ('robustgen list protocols') or add the data set to its file",
            )
        return found


Settings = TypeVar("Settings")


def of_data(settings: Mapping[str, Settings], data: str) -> Settings | None:
    """The settings for a data set: by its name, by the name of the whole set (digits for digits:0-7), or
    ``any``."""
    names = (data, data.partition(":")[0], "any")
    return next((settings[name] for name in names if name in settings), None)


# --- model cards ---------------------------------------------------------------------------------


class Weights(Strict):
    """The weight file in a card's folder."""

    file: OwnFile = "weights.safetensors"
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Claim(Strict):
    """A measured number of a card, as in a report; ``make zoo`` measures it again."""

    protocol: str
    evaluation: str
    metric: str
    variant: str = ""
    value: float
    ci_low: float
    ci_high: float
    n: int
    published: str = ""
    """The paper's number, and why ours differs from it."""


class ModelCard(Strict):
    """A trained model of the zoo: what it is, what it was trained on, and what it claims."""

    name: Slug
    family: str
    summary: str
    data: str
    arch: Arch
    """A name of robustgen.classifiers.trained.ARCHITECTURES, or ``model.py:NAME`` beside the card."""
    options: Options = Field(default_factory=dict)
    """Keyword arguments of the architecture."""
    weights: Weights | None = None
    over: Slug | None = None
    """Zoo name of the trained denoiser that the model uses, instead of weights and a recipe of its own."""
    calls: int = Field(default=1, ge=1)
    """Network calls that the logits of one picture cost."""
    recipe: OwnFile = "recipe.yaml"
    provenance: str = ""
    """Which copy of which data set it was trained on."""
    licence: str = "Apache-2.0"
    reference: str = ""
    claims: list[Claim] = Field(default_factory=list)
    published: list[str] = Field(default_factory=list)
    """Published numbers of this family, a line each with its source, and why the claims here differ."""
    tried: list[str] = Field(default_factory=list)
    """What was tried and failed, a line each, so that nobody tries it twice."""
