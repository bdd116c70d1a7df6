"""Recipes, the files models/<name>/recipe.yaml: the data, the network and the training of a model."""

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
    """PGD-AT, or TRADES if ``beta`` is set; see training/adversarial.py."""

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
    """The random start is uniform within this many eps; there is no projection to the ball."""
    warm_up: Share = 0.0
    """Share of the training during which eps grows linearly to its value."""


class ChainSpec(Strict):
    """SGLD sampling during the training of a density; see training/sgld.py. Training images get the noise
    that the model declares (the option ``sigma`` of jem and gmmc)."""

    steps: int = Field(default=20, ge=1)
    step_size: Positive = 1.0
    noise: float = Field(default=0.01, ge=0)
    """Standard deviation of the noise of an SGLD step, in pixel units."""
    buffer: Count = 10_000
    reinit: Share = 0.05
    max_gap: Positive = 100.0
    """Largest |log p(data) - log p(samples)|, in nats; beyond it the training has diverged."""
    energy_decay: float = Field(default=0.0, ge=0)
    """Weight of the mean squared log-density at data and samples, which keeps it near 0."""
    discriminative: Share = 0.0
    """Share of the training, from its start, that is discriminative, without samples."""


class SgldSpec(ChainSpec):
    """JEM: cross-entropy, and maximum likelihood with SGLD samples; see training/sgld.py."""

    kind: Literal["sgld"]
    weight: Positive = 1.0
    """Weight of the likelihood term."""


class GmmcSpec(ChainSpec):
    """GMMC: images are drawn to the centre of their class, samples pushed away; see training/centres.py."""

    kind: Literal["gmmc"]
    beta: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the samples' energy; 0 is the discriminative mode."""
    cross_entropy: float = Field(default=0.0, ge=0)
    """Weight of -log p(y | x), a repulsion from the other centres that is not in the paper."""


class DenoisingSpec(Strict):
    """Denoising, cross-entropy on noisy images, or both, by the model; see training/denoising.py."""

    kind: Literal["denoising"]
    weight: float = Field(default=10.0, ge=0)
    """Weight of denoising score matching relative to cross-entropy; 0 is cross-entropy alone."""
    strong: Share = 0.5
    """Share of noise levels drawn from [high / 10, high]; the others are drawn from all levels."""
    clean: Share = 0.15
    """Share of images without noise, for the cross-entropy."""
    dropped: Share = 0.15
    """Share of labels that are dropped, for a denoiser."""
    contrast: float = Field(default=0.0, ge=0)
    """Weight of the cross-entropy of the denoising errors under each class, for a shared-denoiser."""


ObjectiveSpec = Annotated[
    CrossEntropySpec | AdversarialSpec | FastAdversarialSpec | SgldSpec | GmmcSpec | DenoisingSpec,
    Field(discriminator="kind"),
]


class Optimiser(Strict):
    """AdamW, or SGD with Nesterov momentum 0.9; linear warm-up of the rate, then ``schedule``."""

    kind: Literal["adamw", "sgd"] = "adamw"
    lr: Positive
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warm_up: int = Field(default=0, ge=0)
    """In steps."""
    clip: Positive | None = None
    """Largest norm of the gradient (gradient clipping)."""


class Augment(Strict):
    """Data augmentation; see training/augment.py."""

    share: float = Field(default=1.0, ge=0, le=1)
    """Share of images that are augmented; a density needs some from the data's own distribution."""
    shift: int = Field(default=0, ge=0)
    """Largest shift in whole pixels along each axis; the border is filled as ``fill`` says."""
    fill: Literal["zeros", "reflect"] = "zeros"
    flip: bool = False
    rotate: float = Field(default=0.0, ge=0)
    """Largest rotation, in degrees."""
    scale: Share = 0.0
    """Largest relative change of size."""
    subpixel: float = Field(default=0.0, ge=0)
    """Largest shift in pixels along each axis, by bilinear interpolation."""
    cutout: int = Field(default=0, ge=0)
    """Side of a mid-grey square around a random pixel (DeVries and Taylor 2017, arXiv 1708.04552)."""


class Recipe(Strict):
    """Everything that decides a model's weights, and the texts of its card."""

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
    """Decay of the moving average of the weights that becomes the model; None: the last weights."""
    augment: Augment = Augment()
    precision: Precision = "float32"
    """bf16: autocast, in channels_last; falls back to float32 on a machine that only emulates bfloat16."""
    warm_start: Slug | None = None
    """The zoo model whose trained weights initialise the network, which must hold them all."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    restarts: int = Field(default=0, ge=0)
    """How often a diverged training returns to its last checkpoint, to continue with other draws."""
    checkpoint_every: int = Field(default=500, gt=0)
    """In steps."""
    storage: Literal["float32", "float16"] = "float32"
    """The dtype of the weights in their file; a card's claims are measured on the stored weights."""
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
        """The number of full batches; a partial last batch is left out."""
        return max(1, samples // self.batch)

    @property
    def code_file(self) -> str | None:
        """The Python file beside the recipe that ``arch: model.py:NAME`` names; None if built in."""
        own = own_code(self.arch)
        return own[0] if own else None

    def fingerprint(self, code: str | None = None, start: str | None = None) -> str:
        """sha256 of what decides the weights.

        ``code``: the sha256 of ``code_file``; ``start``: the current fingerprint of the ``warm_start`` model.
        Texts are left out, and so is ``checkpoint_every`` unless there may be ``restarts``, which return
        to the last checkpoint.
        """
        left_out = {"summary", "reference", "licence", "published", "tried", "storage"}
        if not self.restarts:
            left_out.add("checkpoint_every")
        if self.warm_start is None:
            left_out.add("warm_start")
        content = self.model_dump(mode="json", exclude=left_out)
        if not self.augment.cutout:  # a later field: fingerprints from before it stay valid
            del content["augment"]["cutout"]
        outside = {"code": code, "start": start}
        return fingerprint(content | {key: value for key, value in outside.items() if value is not None})
