"""What people write down: protocols, model cards and recipes, as validated types of YAML.

Unknown keys are errors, 8/255 reads as a fraction, and there is no code in YAML.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from robustgen.errors import UserError, unknown_name
from robustgen.plainyaml import REMEDY, read_yaml
from robustgen.types import Norm

# Exponents of three digits at most: Fraction("1e999999999") would be computed for hours.
_FRACTION = re.compile(r"[+-]?(\d+/\d+|(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?)", re.ASCII | re.IGNORECASE)


def _fraction(value: Any) -> Any:
    if isinstance(value, bool):  # which pydantic takes for 1 and 0
        raise ValueError("expected a number, not yes or no")
    if not isinstance(value, str):
        return value
    try:
        if len(value) <= 64 and _FRACTION.fullmatch(text := value.replace(" ", "")):
            return float(Fraction(text))
    except (ZeroDivisionError, OverflowError):
        pass
    raise ValueError(f"expected a number or a fraction such as 8/255, got {value[:64]!r}")


def _own_file(value: str) -> str:
    """A file that lies beside the one that names it: never a way out of that folder."""
    if not re.fullmatch(r"\w[\w.-]*", value, re.ASCII):
        raise ValueError("expected the name of a file in the same folder, without a path")
    return value


def own_code(arch: str) -> tuple[str, str] | None:
    """File and name of an architecture ``FILE.py:NAME`` beside its card or recipe; None for one of
    robustgen's."""
    file, colon, name = arch.partition(":")
    return (file, name) if colon else None


def _architecture(value: str) -> str:
    """An architecture's name, or ``FILE.py:NAME`` of a file in the same folder."""
    file, colon, name = value.partition(":")
    if colon and not (re.fullmatch(r"\w[\w.-]*\.py", file, re.ASCII) and name.isidentifier()):
        raise ValueError("expected the name of an architecture, or FILE.py:NAME of a file in the same folder")
    return value


Number = Annotated[float, BeforeValidator(_fraction)]
Positive = Annotated[float, BeforeValidator(_fraction), Field(gt=0)]
Count = Annotated[int, Field(gt=0, lt=2**31)]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=100)]
OwnFile = Annotated[str, AfterValidator(_own_file)]
Arch = Annotated[str, AfterValidator(_architecture)]


class Strict(BaseModel):
    """A frozen piece of YAML in which an unknown key is an error, and so is a number that is none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _yes_is_no_number(cls, content: Any) -> Any:
        """Refuses true and false, which pydantic takes for 1 and 0, where a field is none of yes and no."""
        for key, value in content.items() if isinstance(content, dict) else ():
            kind = cls.model_fields[key].annotation if key in cls.model_fields else Any
            given = value if isinstance(value, list) else [value]
            if (
                kind not in (Any, bool)
                and bool not in get_args(kind)
                and any(v is True or v is False for v in given)
            ):
                raise ValueError(f"expected a number or text for {key!r}, not yes or no")
        return content

    def fingerprint(self) -> str:
        """sha256 of the content, 16 hex digits: equal content, equal fingerprint."""
        return fingerprint(self.model_dump(mode="json"))


def fingerprint(content: object) -> str:
    """sha256 of any JSON-able content in canonical form, 16 hex digits."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- protocols -----------------------------------------------------------------------------------


class CleanSpec(Strict):
    """The test pictures as they are, and the calibration split for a fitted temperature."""

    kind: Literal["clean"]


class AttackSpec(Strict):
    """An attack by name, at the data's eps for that norm unless ``eps`` lists others."""

    kind: Literal["attack"]
    attack: str
    norm: Norm
    eps: list[Positive] | None = None
    scales: list[Positive] = Field(default=[1.0], min_length=1)
    """Multiples of the data's eps, for a curve of accuracy against eps; unused where eps is given."""
    options: dict[str, int | float | str] = {}


class TransferSpec(Strict):
    """Pictures made for the zoo's other models of the data, of less than 10 network calls a picture."""

    kind: Literal["transfer"]
    norm: Literal["linf", "l2"]
    eps: Positive | None = None
    """None: the data's eps for that norm."""
    steps: Count = 50


class CorruptionsSpec(Strict):
    """Corruptions by name and severity; those that the picture size refuses are left out with a flag."""

    kind: Literal["corruptions"]
    types: list[str] = Field(min_length=1)
    severities: list[Annotated[int, Field(ge=1, le=5)]] = Field(min_length=1)
    baseline: str | None = None
    """A family: errors are also given relative to its model for the data, where a report has it."""


class OodSpec(Strict):
    """Foreign pictures: the data's own list of foreign sets, each in the data's size and codec.

    ``scores`` and ``detectors`` are read of foreign and clean pictures beside what the logits say.
    """

    kind: Literal["ood"]
    scores: list[Literal["gradient", "complexity", "chroma"]] = []
    detectors: list[str] = []
    """Names of robustgen.detectors; they need the extra pytorch-ood."""


class FixedSpec(Strict):
    """A fixed number of steps from every picture, none ending early: what calibration and scores are
    after an attack of one size.

    ``objective``: ``label`` lowers the label's probability on the data's pictures; ``energy`` and
    ``msp`` make the data's pictures look foreign by that score and foreign ones familiar.
    """

    kind: Literal["fixed"]
    objective: Literal["label", "energy", "msp"]
    norm: Literal["linf", "l2"]
    eps: Positive | None = None
    """None: the data's eps for that norm."""
    steps: Count = 20


class DetectedSpec(Strict):
    """An attack that knows of a detector: it seeks wrong pictures that the detector accepts.

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
    """What the model's gradients are like at each picture: flags are read from it."""

    kind: Literal["probes"]


class ClimbsSpec(Strict):
    """What APGD meets on its way up, and whether its seed decides, on one sample of ``every``, by its id:
    flags are read from it."""

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
    names = [f"{level:g}" for level in levels]  # as variants of metrics are named
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise ValueError(f"each level once, and {', '.join(double)} stands there again")
    return levels


Levels = Annotated[list[Positive], AfterValidator(_distinct)]


class DataSettings(Strict):
    """What a protocol must know of a data set."""

    eps: dict[Norm, Positive] = {}
    foreign: list[str] = []
    sigmas: Levels = []
    sweep: Levels = []
    """Noise levels for an integral over them: twelve or more, or none."""
    denoiser: str | None = None
    """Zoo name of the reference denoiser."""


class Protocol(Strict):
    """By what models are judged: a file of attacks/."""

    name: Slug
    version: int = Field(ge=1)
    summary: str
    reference: str = ""
    cost: str = ""
    """What a run takes, in words: measured, with the hardware."""
    n: Count | None = None
    """How many test samples, from the first; None means all."""
    seed: int = 0
    chunk: Count = 64
    data: dict[str, DataSettings]
    """Settings by data set; ``any`` serves the data sets that have none of their own."""
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
    """What a protocol's ``data`` says of a data set: by its name, of some classes by the whole set's name
    (of digits:0-7 by digits), else for any."""
    names = (data, data.partition(":")[0], "any")
    return next((settings[name] for name in names if name in settings), None)


# --- model cards ---------------------------------------------------------------------------------


class Weights(Strict):
    """A weight file beside its card."""

    file: OwnFile = "weights.safetensors"
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Claim(Strict):
    """A measured figure of a card, in the terms of a report; a test measures it again."""

    protocol: str
    evaluation: str
    metric: str
    variant: str = ""
    value: float
    ci_low: float
    ci_high: float
    n: int
    published: str = ""
    """The paper's figure and why ours differs from it."""


class ModelCard(Strict):
    """A trained model of the zoo: what it is, what it learned from, and what it claims."""

    name: Slug
    family: str
    summary: str
    data: str
    arch: Arch
    """A name of robustgen.classifiers.trained.ARCHITECTURES, or ``model.py:NAME`` beside the card."""
    options: dict[str, JsonValue] = {}
    """Keyword arguments of the architecture."""
    weights: Weights | None = None
    over: Slug | None = None
    """Zoo name of the trained denoiser that the model stands on, instead of weights and recipe of its own."""
    calls: int = Field(default=1, ge=1)
    """Network calls that the logits of one picture cost."""
    recipe: OwnFile = "recipe.yaml"
    provenance: str = ""
    """Which copy of which data it was trained on."""
    licence: str = "Apache-2.0"
    reference: str = ""
    claims: list[Claim] = []
    published: list[str] = []
    """What others published of this family, a line each with its source, and why the claims here differ."""
    tried: list[str] = []
    """What was tried and failed, a line each, so that nobody tries it twice."""


# --- reading --------------------------------------------------------------------------------

T = TypeVar("T", bound=Strict)


def read(kind: type[T], path: Path) -> T:
    """Read and validate a YAML file as ``kind``; every problem is named with its key."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(
            "this file must be a mapping of keys", where=path, expected="lines such as 'name: ...'",
            got="nothing" if content is None else type(content).__name__, remedy=REMEDY,
        )  # fmt: skip
    return validate(kind, content, where=path)


def validate(kind: type[T], content: dict[str, Any], *, where: object) -> T:
    """Validate a mapping as ``kind``; the first problem of each key becomes one line of the error."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        # a slip in a key comes first: that the key it stands for is missing follows from it
        first, *others = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        key = _key(first["loc"])
        if first["type"] == "extra_forbidden":
            siblings = _fields_at(kind, first["loc"][:-1])
            if siblings:
                raise unknown_name("key", key.rsplit(".", 1)[-1], siblings, where=f"{where}: {key}") from None
        problems = "; ".join(f"{_key(e['loc'])}: {_expected(e)}" for e in (first, *others[:4]))
        what = f"the value of {key!r} is not valid" if key else "these values do not go together"
        got = first.get("ctx", {}).get("tag", first["input"])
        raise UserError(
            f"the key {key!r} is missing" if first["type"] == "missing" else what,
            where=where,
            expected=_expected(first),
            got=None if isinstance(got, dict) else repr(got)[:120],
            remedy=f"all problems: {problems}" if others else REMEDY,
        ) from None


def _expected(problem: ErrorDetails) -> str:
    """What would have been right, in few words."""
    match problem["type"]:
        case "missing":
            return "this key, with a value"
        case "extra_forbidden":
            return "no such key"
        case "union_tag_invalid":
            return f"{problem['ctx']['discriminator']}: one of {problem['ctx']['expected_tags']}"
        case "union_tag_not_found":
            return f"the key {problem['ctx']['discriminator']}, which says what this is"
        case _:
            words = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            return words.removeprefix("expected ")


def _key(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)[:200]


def _fields_at(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that there are at a place inside a file of this kind; none where it cannot be told."""
    kinds = [kind]
    for part in location:
        tagged = [k for k in kinds if part in _tags(k)]
        if len(kinds) > 1 and tagged:  # pydantic names the member of a union by its tag
            kinds = tagged
        else:  # a place in a list, or a key of a mapping, leads to what is there already
            kinds = [
                f for k in kinds if part in k.model_fields for f in _kinds(k.model_fields[str(part)])
            ] or kinds
    return list(kinds[0].model_fields) if len(kinds) == 1 else []


def _kinds(field: Any) -> list[type[BaseModel]]:
    """The kinds of YAML that the type of a field is made of."""
    annotation = field.annotation if isinstance(field, FieldInfo) else field
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for inner in get_args(annotation) for kind in _kinds(inner)]


def _tags(kind: type[BaseModel]) -> tuple[Any, ...]:
    return get_args(kind.model_fields["kind"].annotation) if "kind" in kind.model_fields else ()
