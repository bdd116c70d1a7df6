"""Recipes: what a model is trained on and how, as a file models/<name>/recipe.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from robustgen.config import Arch, own_code
from robustgen.strict import Count, Options, Positive, Slug, Strict, fingerprint
from robustgen.types import Norm, Precision

Share = Annotated[float, Field(ge=0, lt=1)]


class CrossEntropySpec(Strict):
    """-log p(y | x); see training/cross_entropy.py."""

    kind: Literal["cross-entropy"]
    label_smoothing: Share = 0.0


class AdversarialSpec(Strict):
    """PGD-AT, or TRADES where ``beta`` is set; see training/adversarial.py."""

    kind: Literal["adversarial"]
    norm: Norm = "linf"
    eps: Positive
    steps: int = Field(default=10, ge=1)
    step_size: Positive
    """In pixel units."""
    beta: Positive | None = None
    """Weight of the divergence term of TRADES; None means PGD-AT."""
    label_smoothing: Share = 0.0
    warm_up: Share = 0.0
    """Share of the training during which eps grows linearly to its value."""


class FastAdversarialSpec(Strict):
    """N-FGSM: one gradient step from a wide random start; see training/adversarial.py."""

    kind: Literal["n-fgsm"]
    eps: Positive
    """In Linf and pixel units; also the size of the step."""
    noise: Positive = 2.0
    """The random start reaches that many eps, and nothing is projected back to the ball."""
    warm_up: Share = 0.0
    """Share of the training during which eps grows linearly to its value."""


class ChainSpec(Strict):
    """How samples are drawn while a density is trained on them; see training/sgld.py. Every training picture
    gets the noise that the model declares (the option ``sigma`` of jem and gmmc)."""

    steps: int = Field(default=20, ge=1)
    step_size: Positive = 1.0
    noise: float = Field(default=0.01, ge=0)
    """Standard deviation of the noise of a step, in pixel units."""
    buffer: Count = 10_000
    reinit: Share = 0.05
    max_gap: Positive = 100.0
    """Largest |log p(data) - log p(samples)| in nats that is not yet called divergence."""
    energy_decay: float = Field(default=0.0, ge=0)
    """Weight of the mean square of the log-density at data and samples, which keeps it near 0."""
    discriminative: Share = 0.0
    """Share of the training, from its start, without samples."""


class SgldSpec(ChainSpec):
    """JEM: cross-entropy and maximum likelihood by SGLD samples; see training/sgld.py."""

    kind: Literal["sgld"]
    weight: Positive = 1.0
    """Weight of the likelihood term."""


class GmmcSpec(ChainSpec):
    """GMMC: pictures drawn to the centre of their class, samples pushed from it; see training/centres.py."""

    kind: Literal["gmmc"]
    beta: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the samples' energy; 0 leaves the discriminative loss alone."""
    cross_entropy: float = Field(default=0.0, ge=0)
    """Weight of -log p(y | x), a push from the other classes' centres that the paper's loss has not."""


class DenoisingSpec(Strict):
    """Denoising, cross-entropy on noisy pictures, or both, as the model is; see training/denoising.py."""

    kind: Literal["denoising"]
    weight: float = Field(default=10.0, ge=0)
    """Weight of denoising score matching against cross-entropy; 0 leaves the latter alone."""
    strong: Share = 0.5
    """Share of noise levels from the strongest tenth to the strongest, the others from all levels."""
    clean: Share = 0.15
    """Share of pictures without noise: for cross-entropy."""
    dropped: Share = 0.15
    """Share of labels that are left out: for a denoiser."""
    contrast: float = Field(default=0.0, ge=0)
    """Weight of telling the classes apart by the errors under each: for a shared-denoiser."""


ObjectiveSpec = Annotated[
    CrossEntropySpec | AdversarialSpec | FastAdversarialSpec | SgldSpec | GmmcSpec | DenoisingSpec,
    Field(discriminator="kind"),
]


class Optimiser(Strict):
    """AdamW or SGD with Nesterov momentum 0.9; the rate warms up linearly, then follows the schedule."""

    kind: Literal["adamw", "sgd"] = "adamw"
    lr: Positive
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warm_up: int = Field(default=0, ge=0)
    """In steps."""
    clip: Positive | None = None
    """Largest norm of the gradient; a longer one is scaled down to it."""


class Augment(Strict):
    """Random changes of training pictures that keep the label; see training/augment.py."""

    share: float = Field(default=1.0, ge=0, le=1)
    """Share of pictures that are changed; the others keep the data's own distribution, as a density needs."""
    shift: int = Field(default=0, ge=0)
    """Whole pixels, either way on each axis; the border is filled by reflection or zeros (``fill``)."""
    fill: Literal["zeros", "reflect"] = "zeros"
    flip: bool = False
    rotate: float = Field(default=0.0, ge=0)
    """Degrees, either way."""
    scale: Share = 0.0
    """Share by which the size grows or shrinks at most."""
    subpixel: float = Field(default=0.0, ge=0)
    """Pixels, either way on each axis, by bilinear interpolation."""
    cutout: int = Field(default=0, ge=0)
    """Side of a square around a random pixel that becomes mid-grey, which a ResNet of the zoo sees as 0
    (DeVries and Taylor 2017, arXiv 1708.04552)."""


class Recipe(Strict):
    """Everything that decides a model's weights, and the words of its card."""

    name: Slug
    family: str
    data: str
    arch: Arch
    options: Options = Field(default_factory=dict)
    """Keyword arguments of the architecture; num_classes and input_shape come from the data."""
    objective: ObjectiveSpec
    optimiser: Optimiser
    epochs: int | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, gt=0)
    batch: int = Field(default=64, gt=0)
    ema: Share | None = None
    """Decay of the moving average of the weights, which becomes the model; None means the last weights."""
    augment: Augment = Augment()
    precision: Precision = "float32"
    """bf16: autocast, in channels_last; float32 on machines that only emulate it."""
    warm_start: Slug | None = None
    """A model of the zoo whose trained weights the training starts from; the network must hold them all."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    restarts: int = Field(default=0, ge=0)
    """How often a diverged training goes back to its last checkpoint and on, with other draws."""
    checkpoint_every: int = Field(default=500, gt=0)
    """In steps."""
    storage: Literal["float32", "float16"] = "float32"
    """Of the weights in their file; what a card claims is measured on the stored ones."""
    summary: str
    reference: str = ""
    licence: str = "Apache-2.0"
    published: list[str] = Field(default_factory=list)
    tried: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_length(self) -> Recipe:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("expected either epochs or steps")
        return self

    def total_steps(self, samples: int) -> int:
        """Steps of the whole training on a data set of that many samples."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return self.epochs * self.steps_per_epoch(samples)

    def steps_per_epoch(self, samples: int) -> int:
        """Full batches only, so that every step sees the same number of pictures."""
        return max(1, samples // self.batch)

    @property
    def code_file(self) -> str | None:
        """The Python file beside the recipe that ``arch: model.py:NAME`` names; None for a built-in one."""
        own = own_code(self.arch)
        return own[0] if own else None

    def fingerprint(self, code: str | None = None, start: str | None = None) -> str:
        """sha256 of what decides the weights; ``code`` is the sha256 of ``code_file``.

        ``start`` is the fingerprint of the model that ``warm_start`` names, as it lies in the zoo now.

        Words are left out, and so is the rhythm of checkpoints, unless there may be ``restarts``:
        a training that diverged goes back to its last checkpoint.
        """
        left_out = {"summary", "reference", "licence", "published", "tried", "storage"}
        if not self.restarts:
            left_out.add("checkpoint_every")
        if self.warm_start is None:
            left_out.add("warm_start")
        content = self.model_dump(mode="json", exclude=left_out)
        if not self.augment.cutout:  # which came later: trainings begun before it go on
            del content["augment"]["cutout"]
        outside = {"code": code, "start": start}
        return fingerprint(content | {key: value for key, value in outside.items() if value is not None})
