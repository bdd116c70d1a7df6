"""Diffusion classifiers from pipelines of Hugging Face diffusers: ``diffusers:ID`` or ``diffusers:FOLDER``.

Three kinds are supported: a U-Net with class labels on pixels (DDPMPipeline and similar), DiT with class
labels on latents, and Stable Diffusion with a prompt per class (zero-shot; Li et al. 2023). Each becomes a
denoiser in the units of its network, for the DiffusionClassifier of diffusion.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.classifiers.base import Classifier, Denoiser
from robustgen.classifiers.diffusion import DiffusionClassifier
from robustgen.classifiers.noise_levels import check_noise_level, per_sample
from robustgen.errors import UserError, describe_error, missing_package
from robustgen.types import ConditionalNoise, Density

PROMPT = "a photo of a {}."
LEVELS = (0.4, 4.0)
"""Lowest and highest noise level, in standard deviations of the data, as in the classifier of the digits."""
PIXEL_DEVIATION, LATENT_DEVIATION = 0.5, 1.0
"""sigma_data: EDM's for pixels in [-1, 1], and the one that the scaling factor of latents is chosen for."""
NETWORK_BATCH = 64
"""Images per call of the network: all of a thousand classes at once would not fit into memory."""

Condition = Callable[[Tensor], dict[str, Tensor]]
"""Labels (batch,) to the conditioning arguments of a network's forward."""


class PipelineDenoiser(Denoiser):
    """A network that was trained on x_t = sqrt(abar_t) z + sqrt(1 - abar_t) n, as a denoiser of z + sigma n.

    z + sigma n = x_t / sqrt(abar_t) at sigma_t^2 = (1 - abar_t) / abar_t (Song et al. 2021, DDIM,
    section 4.3; Karras et al. 2022, table 1). Between two steps t is interpolated in log sigma. ``predicts``
    says what the network outputs: the noise (epsilon), v = sqrt(abar) n - sqrt(1 - abar) z (v_prediction;
    Salimans and Ho 2022), or z itself (sample).
    """

    log_sigmas: Tensor

    def __init__(
        self, network: nn.Module, alphas_cumprod: Tensor, predicts: str, condition: Condition,
        *, num_classes: int, input_shape: tuple[int, int, int],
    ) -> None:  # fmt: skip
        super().__init__()
        self.network = network
        self.predicts = predicts
        self.condition = condition
        self.num_classes = num_classes
        self.input_shape = input_shape
        abar = alphas_cumprod.double()
        abar = abar[abar > 0]  # at pure noise, where a schedule may end, sigma is infinite
        self.register_buffer("log_sigmas", ((1 - abar) / abar).log() / 2)
        low, high = (float(self.log_sigmas[end].exp()) for end in (0, -1))
        self.levels = ConditionalNoise(low, high)

    def denoise(self, x: Tensor, sigma: float | Tensor, y: Tensor | None = None) -> Tensor:
        """E[z | x, y]; a label is needed."""
        if y is None:
            raise UserError("this denoiser needs labels", expected="labels (batch,)", got=None)
        check_noise_level(sigma, self.levels)
        parts = (part.split(NETWORK_BATCH) for part in (x, per_sample(sigma, x), y))
        return torch.cat([self._denoise(*part) for part in zip(*parts, strict=True)])

    def _denoise(self, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        root = (1 + sigma**2).rsqrt()[:, None, None, None]  # sqrt(abar)
        s = sigma[:, None, None, None]
        out = self.network(root * x, timestep=self.time(sigma), **self.condition(y)).sample
        out = out[:, : x.shape[1]]  # further channels are a learned variance
        if self.predicts == "epsilon":
            return x - s * out
        return root**2 * x - s * root * out if self.predicts == "v_prediction" else out

    def time(self, sigma: Tensor) -> Tensor:
        """The time step t, a float (batch,), whose noise level is sigma (batch,)."""
        wanted = sigma.to(self.log_sigmas).log()
        above = torch.searchsorted(self.log_sigmas, wanted).clamp(1, len(self.log_sigmas) - 1)
        start, end = self.log_sigmas[above - 1], self.log_sigmas[above]
        return (above - 1 + ((wanted - start) / (end - start)).clamp(0, 1)).to(sigma)


class PipelineClassifier(Classifier):
    """A diffusion classifier on the inputs of a pipeline's network, which ``encode`` computes from images.

    Its log p(x, y) is that of the encoded images.
    """

    density: Density = "unnormalised"

    def __init__(
        self, encode: nn.Module, over: PipelineDenoiser, input_shape: tuple[int, int, int], deviation: float
    ) -> None:
        super().__init__()
        self.encode = encode
        low, high = (deviation * end for end in LEVELS)
        low, high = max(low, over.levels.low), min(high, over.levels.high)
        self.over_latents = DiffusionClassifier(over, low=low, high=high)
        self.num_classes = over.num_classes
        self.input_shape = input_shape
        self.calls_per_image = self.over_latents.calls_per_image

    def log_joint(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return self.over_latents.log_joint(self.encode(x))


class Encode(nn.Module):
    """Images in [0, 1] to the network's size and to [-1, 1]; with a VAE, to the mode of its latents."""

    def __init__(self, channels: int, size: int, vae: Any = None) -> None:
        super().__init__()
        self.channels, self.size, self.vae = channels, size, vae

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] == 1:
            x = x.expand(-1, self.channels, -1, -1)
        if x.shape[2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True)
        x = 2 * x - 1
        if self.vae is None:
            return x
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        return (self.vae.encode(x).latent_dist.mode() - shift) * self.vae.config.scaling_factor


def load(name: str, class_names: Sequence[str], input_shape: tuple[int, int, int]) -> PipelineClassifier:
    """The classifier of a pipeline, given by its id on the hub or by a local folder.

    ``class_names`` and ``input_shape``: those of the data; a class-conditional network must have the same
    number of classes, in the same order. Only safetensors are loaded. Raises UserError.
    """
    pipeline = _fetch(name)
    parts, schedule = pipeline.components, pipeline.scheduler
    if not hasattr(schedule, "alphas_cumprod") or schedule.config.prediction_type not in PREDICTIONS:
        raise UserError(
            f"diffusers:{name} has an unsupported noise schedule",
            expected=f"a schedule of alphas_cumprod whose network predicts one of {', '.join(PREDICTIONS)}",
            got=type(schedule).__name__,
        )
    network = parts.get("unet") or parts.get("transformer")
    vae = parts.get("vae")
    unsupported = any(parts.get(part) is not None for part in UNSUPPORTED) or (
        network is not None and network.config.get("addition_embed_type")
    )
    if network is None or unsupported or not isinstance(network.config.sample_size, int):
        kind = type(pipeline).__name__
        raise UserError(
            f"diffusers:{name} is a pipeline of an unsupported kind", expected=SUPPORTED, got=kind
        )
    size, channels = network.config.sample_size, network.config.in_channels
    if parts.get("text_encoder") is not None:
        prompts = _encode_prompts(parts["tokenizer"], parts["text_encoder"], class_names)
        condition: Condition = PromptCondition(prompts)
    else:
        condition = _label_condition
        _check_classes(name, network, class_names)
    encode = Encode(channels, size)
    if vae is not None:
        reduction = 2 ** (len(vae.config.block_out_channels) - 1)
        encode = Encode(vae.config.in_channels, size * reduction, vae)
    if input_shape[0] not in (1, encode.channels):
        raise UserError(
            f"diffusers:{name} does not take pictures with this number of channels",
            expected=f"1 or {encode.channels}", got=input_shape[0],
        )  # fmt: skip
    over = PipelineDenoiser(
        network, schedule.alphas_cumprod, schedule.config.prediction_type, condition,
        num_classes=len(class_names), input_shape=(channels, size, size),
    )  # fmt: skip
    deviation = PIXEL_DEVIATION if vae is None else LATENT_DEVIATION
    return PipelineClassifier(encode, over, input_shape, deviation).eval()


PREDICTIONS = ("epsilon", "v_prediction", "sample")
UNSUPPORTED = ("text_encoder_2", "text_encoder_3", "vqvae", "image_encoder")
"""Components of pipelines that need more inputs than the images and one prompt or label."""
SUPPORTED = "a U-Net with class labels, DiT, or Stable Diffusion"


class PromptCondition(nn.Module):
    """Conditions on a class by the encoded prompt of its name; ``prompts``: (classes, tokens, width)."""

    prompts: Tensor

    def __init__(self, prompts: Tensor) -> None:
        super().__init__()
        self.register_buffer("prompts", prompts)

    def forward(self, y: Tensor) -> dict[str, Tensor]:
        return {"encoder_hidden_states": self.prompts[y]}


def _label_condition(y: Tensor) -> dict[str, Tensor]:
    return {"class_labels": y}


@torch.no_grad()
def _encode_prompts(tokenizer: Any, encoder: nn.Module, class_names: Sequence[str]) -> Tensor:
    prompts = [PROMPT.format(name) for name in class_names]
    length = tokenizer.model_max_length
    tokens = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return encoder(tokens.input_ids)[0].float()


def _check_classes(name: str, network: Any, class_names: Sequence[str]) -> None:
    """Raise UserError unless the network has the data's number of classes, or one more, the null label."""
    config = network.config
    known = config.get("num_embeds_ada_norm") or config.get("num_class_embeds")
    if known not in (len(class_names), len(class_names) + 1):
        raise UserError(
            f"diffusers:{name} does not fit the data",
            expected=f"a network of {len(class_names)} classes (one more for the null label), or of prompts",
            got=f"{known} classes" if known else "a network without classes",
            remedy="name the data that it was trained on (--data), or another pipeline",
        )


def _fetch(name: str) -> Any:
    with _quiet_diffusers() as diffusers:
        try:
            _refuse_code(name, diffusers)
            return diffusers.DiffusionPipeline.from_pretrained(name, use_safetensors=True)
        except UserError:
            raise
        except Exception as error:  # another library's loader: any exception
            raise UserError(
                f"diffusers:{name} could not be loaded",
                expected="an id of the hub, or a folder with a model_index.json and weights as safetensors",
                got=describe_error(error, 300),
                remedy="check the name and the network; without one, fetch the pipeline elsewhere "
                "(huggingface-cli download) and name its folder: diffusers:FOLDER",
            ) from None


def _refuse_code(name: str, diffusers: Any) -> None:
    """Raise UserError for a pipeline with components that are not from diffusers or transformers.

    diffusers itself asks before running such code, but not in every release.
    """
    parts = dict(diffusers.DiffusionPipeline.load_config(name))
    named = {part: value[0] for part, value in parts.items() if isinstance(value, list | tuple) and value}
    foreign = [
        f"{part}: {library}"
        for part, library in named.items()
        if part == "_class_name"
        or not (library in (None, "diffusers", "transformers") or hasattr(diffusers.pipelines, str(library)))
    ]
    foreign += [str(path) for path in sorted(Path(name).rglob("*.py"))]
    if foreign:
        raise UserError(
            f"diffusers:{name} contains code, which robustgen does not run",
            where="model_index.json, and the files beside it",
            expected="components of diffusers and transformers alone",
            got=", ".join(foreign[:4]),
            remedy="if you trust that code, load the pipeline in a file of your own: FILE.py:NAME",
        )


@contextlib.contextmanager
def _quiet_diffusers() -> Iterator[Any]:
    """The module diffusers, without its progress bars and warnings; UserError if it is not installed."""
    try:
        import diffusers
        import transformers  # noqa: F401 (diffusers reads prompts with it)
    except ModuleNotFoundError as error:
        package = error.name or "diffusers"
        raise missing_package(package, "diffusers", "a model diffusers:NAME") from None
    log = diffusers.utils.logging
    before = log.get_verbosity()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield diffusers
    finally:
        log.set_verbosity(before)
        log.enable_progress_bar()
