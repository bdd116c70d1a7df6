"""Builds models by architecture name, and loads trained models from the folders of the zoo."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from robustgen import registry
from robustgen.classifiers.base import Classifier, Denoiser
from robustgen.classifiers.networks import Block
from robustgen.classifiers.noisy_networks import NoiseBlock
from robustgen.classifiers.user import construct, import_file
from robustgen.config import own_code
from robustgen.errors import UserError, describe_error, unknown_name

ARCHITECTURES: dict[str, str] = {
    "resnet-softmax": "robustgen.classifiers.softmax:Softmax",
    "mirrored-softmax": "robustgen.classifiers.softmax:MirroredSoftmax",
    "jem": "robustgen.classifiers.jem:JEM",
    "gmmc": "robustgen.classifiers.gmmc:GMMC",
    "cdn": "robustgen.classifiers.cdn:CDN",
    "egc": "robustgen.classifiers.egc:EGC",
    "noisy-softmax": "robustgen.classifiers.cdn:NoisySoftmax",
    "mirrored-noisy-softmax": "robustgen.classifiers.cdn:MirroredNoisySoftmax",
    "denoiser": "robustgen.classifiers.denoisers:EDMDenoiser",
    "shared-denoiser": "robustgen.classifiers.denoisers:SharedDenoiser",
}
"""``arch`` of a card to module:class; it is called with num_classes, input_shape and the card's options."""

OVER_A_DENOISER: dict[str, str] = {
    "diffusion": "robustgen.classifiers.diffusion:DiffusionClassifier",
    "score": "robustgen.classifiers.score:ScoreClassifier",
}
"""``arch`` of a card with ``over``: the class is called with that denoiser and the card's options."""

REMEDY = "fetch the file again, or train anew"
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
BLOCKS = (Block, NoiseBlock)


def build(
    arch: str, options: dict[str, Any], *, where: object, folder: Path | None = None
) -> Classifier | Denoiser:
    """An untrained model. ``arch``: a key of ARCHITECTURES, a key of OVER_A_DENOISER with the denoiser as the
    option ``over``, or ``model.py:NAME`` in ``folder``; ``where`` is for the error messages."""
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    own = own_code(arch)
    if own and folder is not None:
        file, attribute = folder / own[0], own[1]
        return construct(import_file(file, attribute), where=f"{file}:{attribute}", **options)
    known = ARCHITECTURES | OVER_A_DENOISER
    if arch in OVER_A_DENOISER and "over" not in options:
        raise UserError(
            f"the architecture {arch!r} has no weights of its own: it needs a trained denoiser",
            where=where,
            remedy="name one in the card, such as 'over: denoiser-digits'; there is nothing to train",
        )
    if arch in known:
        module, _, attribute = known[arch].partition(":")
        make = getattr(importlib.import_module(module), attribute)
    else:
        raise unknown_name("architecture", arch, known, where=where)
    try:
        return make(**options)
    except UserError as error:
        error.fill_in(where=where, remedy="mend the options")
        raise
    except Exception as error:  # an unknown or mistyped argument, or one that torch refuses
        raise UserError(
            f"the architecture {arch!r} does not take these options",
            where=where,
            expected=f"options that make a network, such as {_example(arch)}",
            got=", ".join(f"{k}={v!r}" for k, v in options.items() if k != "over")
            + f": {describe_error(error)}",
            remedy="mend the options",
        ) from None


def _example(arch: str) -> str:
    """Options of a zoo model of this architecture, for an error message."""
    cards = (registry.load_card(folder) for folder in registry.model_folders().values())
    card = max(
        (card for card in cards if card.arch == arch), key=lambda card: len(card.options), default=None
    )
    return f"{', '.join(card.options)} (of {card.name})" if card else "those of its signature"


def load(folder: Path | str) -> Classifier | Denoiser:
    """A trained model from its folder: evaluation mode, float32, no weight gradients.

    Raises UserError if the sha256 of the weights, a key or a shape does not match.
    """
    folder = Path(folder)
    card = registry.load_card(folder)
    over = {} if card.over is None else {"over": load(denoiser_folder(card.over, folder / "card.yaml"))}
    model = build(card.arch, card.options | over, where=folder / "card.yaml", folder=folder)
    if card.weights is not None:
        _load_weights(model, folder / card.weights.file, card.weights.sha256)
    return frozen(model)


def warm_start_weights(model: nn.Module, name: str, *, where: object) -> None:
    """Initialise a model with the trained weights of the zoo model ``name``, each of which must fit.

    Parameters that those weights lack start at 0, so that the model computes the same function at first
    (random heads of an energy would be off by a thousand nats). Norm layers keep their initial values, as
    a scale of 0 passes nothing on, and so do residual blocks except for their last convolution: of two
    consecutive layers at 0, neither has a gradient. Raises UserError for a tensor that does not fit.
    """
    own = model.state_dict()
    taken = load(zoo_folder(name, where=where)).state_dict()
    for key, value in taken.items():
        if key not in own or own[key].shape != value.shape:
            raise UserError(
                f"the weights of {name!r} do not fit into this network",
                where=f"{where}: {key}",
                expected=f"shape {tuple(value.shape)}",
                got=f"shape {tuple(own[key].shape)}" if key in own else "no such tensor",
                remedy="give both recipes the same options, or leave warm_start out",
            )
    layers = dict(model.named_modules())
    last = {layer.last for layer in layers.values() if isinstance(layer, BLOCKS)}
    kept = _keys({name: layer for name, layer in layers.items() if isinstance(layer, NORMS + BLOCKS)})
    kept -= _keys({name: layer for name, layer in layers.items() if layer in last})
    initial = {key: value if key in kept else torch.zeros_like(value) for key, value in own.items()}
    model.load_state_dict(initial | taken)


def _keys(layers: dict[str, nn.Module]) -> set[str]:
    """The state_dict keys of these layers, given by their names in the network."""
    return {f"{name}.{key}".lstrip(".") for name, layer in layers.items() for key in layer.state_dict()}


def zoo_folder(name: str, *, where: object) -> Path:
    """The folder of the zoo model ``name``; ``where`` is for the UserError if there is none."""
    folders = registry.model_folders()
    if name not in folders:
        raise unknown_name("model of the zoo", name, folders, where=where)
    return folders[name]


def denoiser_folder(name: str, where: Path) -> Path:
    """The folder of the denoiser that a card names as ``over``."""
    folder = registry.model_folders().get(name)
    if folder is None:
        raise UserError(
            "the denoiser of this card is missing",
            where=f"{where}: over",
            expected=f"a folder models/{name}",
            got="no such folder",
            remedy="fetch or train it, or name another one ('robustgen list models')",
        )
    card = registry.load_card(folder)
    if card.family != "denoiser" or card.over is not None:
        raise UserError(
            "this card names a model that is not a denoiser",
            where=f"{where}: over",
            expected="a model of the family denoiser, with weights of its own",
            got=f"{name}, of the family {card.family}",
        )
    return folder


def frozen(model: Any) -> Any:
    """The model in evaluation mode, in float32, without weight gradients."""
    return model.float().eval().requires_grad_(False)


def _load_weights(model: nn.Module, path: Path, sha256: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load as from_safetensors

    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            "the weights of this model are missing",
            where=path,
            expected="the file that the card names",
            got=error.strerror,
            remedy="'robustgen train' with the recipe beside the card makes them",
        ) from None
    got = hashlib.sha256(content).hexdigest()
    if got != sha256:
        raise UserError(
            "these are not the weights that the card names",
            where=path,
            expected=f"sha256 {sha256}",
            got=got,
            remedy=REMEDY,
        )
    try:
        tensors = from_safetensors(content)
    except SafetensorError as error:
        raise UserError(
            "this is not a safetensors file",
            where=path,
            expected="tensors as safetensors",
            got=error,
            remedy=REMEDY,
        ) from None
    _check_keys(model, tensors, path)
    model.load_state_dict(tensors)  # copies into float32 if the file holds float16


def _check_keys(model: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    own = model.state_dict()
    wanted = {key: tuple(value.shape) for key, value in own.items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
            raise UserError(
                "the weights do not fit the architecture that the card names",
                where=f"{path}: {key}",
                expected=f"shape {wanted[key]}" if key in wanted else "no such tensor",
                got=f"shape {found[key]}" if key in found else "no such tensor",
                remedy="the card's arch and options must be those of the training",
            )
        finite = bool(own[key].isfinite().all())  # an attention mask may hold -inf
        if finite and tensors[key].is_floating_point() and not bool(tensors[key].isfinite().all()):
            raise UserError(
                "the weights are not all finite", where=f"{path}: {key}", expected="finite numbers",
                got="NaN or infinity", remedy=REMEDY,
            )  # fmt: skip
