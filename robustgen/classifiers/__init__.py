"""Classifiers and denoisers: by name from the zoo, from a user's file, or from another library."""

from __future__ import annotations

import copy
import hashlib
import importlib
import inspect
import numbers
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustgen import config, registry
from robustgen.classifiers.base import Classifier, Denoiser, PlainClassifier
from robustgen.classifiers.user import construct, import_file, neighbours
from robustgen.config import ModelCard
from robustgen.errors import UserError, unknown_name
from robustgen.registry import EntryPointModel, FileModel, ModelRef, ObjectModel, OutsideModel, ZooModel

# Name in a card to module:class; each is called with num_classes, input_shape and the card's options.
ARCHITECTURES: dict[str, str] = {
    "resnet-softmax": "robustgen.classifiers.softmax:Softmax",
    "jem": "robustgen.classifiers.jem:JEM",
    "gmmc": "robustgen.classifiers.gmmc:GMMC",
    "cdn": "robustgen.classifiers.cdn:CDN",
    "egc": "robustgen.classifiers.egc:EGC",
    "noisy-softmax": "robustgen.classifiers.cdn:NoisySoftmax",
    "denoiser": "robustgen.classifiers.denoisers:EDMDenoiser",
    "shared-denoiser": "robustgen.classifiers.denoisers:SharedDenoiser",
}

# Those of a card with ``over``: called with the denoiser that it names and the card's options.
OVER_A_DENOISER: dict[str, str] = {
    "diffusion": "robustgen.classifiers.diffusion:DiffusionClassifier",
    "score": "robustgen.classifiers.score:ScoreClassifier",
}

REMEDY = "fetch the file again, or train anew"


def build(
    arch: str, options: dict[str, Any], *, where: object, folder: Path | None = None
) -> Classifier | Denoiser:
    """A model as its options alone make it: a name of ARCHITECTURES or, with the option ``over``, of
    OVER_A_DENOISER, or ``model.py:NAME`` in ``folder``."""
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    file, _, attribute = arch.partition(":")
    if attribute and file.endswith(".py") and folder is not None:
        make = import_file(folder / file, attribute)
        return construct(make, where=f"{folder / file}:{attribute}", **options)
    known = ARCHITECTURES | OVER_A_DENOISER
    if arch in OVER_A_DENOISER and "over" not in options:
        raise UserError(
            f"the architecture {arch!r} has no weights of its own, but stands on a trained denoiser",
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
    except UserError:
        raise
    except Exception as error:  # an argument that is not known, of a wrong type, or that torch refuses
        raise UserError(
            f"the architecture {arch!r} does not take these options",
            where=where,
            expected=", ".join(f"{k}={v!r}" for k, v in options.items() if k != "over") + " to make a model",
            got=": ".join([type(error).__name__, *str(error).splitlines()[:1]]),
            remedy="mend the options",
        ) from None


def load(folder: Path | str) -> Classifier | Denoiser:
    """A trained model from its folder (or its card.yaml), in evaluation mode, float32, without gradients.

    The weights' sha256 and every key and shape are checked; any mismatch is a UserError.
    """
    folder = Path(folder)
    folder = folder.parent if folder.name == "card.yaml" else folder
    card = registry.load_card(folder)
    over = {} if card.over is None else {"over": load(_denoiser_folder(card.over, folder / "card.yaml"))}
    model = build(card.arch, card.options | over, where=folder / "card.yaml", folder=folder)
    if card.weights is not None:
        _load_weights(model, folder / card.weights.file, card.weights.sha256)
    return _frozen(model)


def take_weights(model: nn.Module, name: str, *, where: object) -> None:
    """Start a model from the trained weights of the zoo's model ``name``, each of which must fit into it.

    What the model has beyond them starts at 0, so that it begins as the network that it continues: an
    energy whose heads came random would be off by a thousand nats. A tensor without a place is a UserError.
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
    model.load_state_dict({key: taken.get(key, torch.zeros_like(value)) for key, value in own.items()})


def zoo_folder(name: str, *, where: object) -> Path:
    """The folder of the zoo's model ``name``; ``where`` says who names it, should there be none."""
    folders = registry.model_folders()
    if name not in folders:
        raise unknown_name("model of the zoo", name, folders, where=where)
    return folders[name]


def _denoiser_folder(name: str, where: Path) -> Path:
    """The folder of the denoiser that a card stands on."""
    folder = registry.model_folders().get(name)
    if folder is None:
        raise UserError(
            "the denoiser that this card stands on is not there",
            where=f"{where}: over",
            expected=f"a folder models/{name}",
            got="no such folder",
            remedy="fetch or train it, or name another one ('robustgen list models')",
        )
    card = registry.load_card(folder)
    if card.family != "denoiser" or card.over is not None:
        raise UserError(
            "a card can only stand on a denoiser",
            where=f"{where}: over",
            expected="a model of the family denoiser, with weights of its own",
            got=f"{name}, of the family {card.family}",
        )
    return folder


def _frozen(model: Any) -> Any:
    return model.float().eval().requires_grad_(False)


def _load_weights(model: nn.Module, path: Path, sha256: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load as from_safetensors

    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            "the weights of this model are not there",
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
            "this is no safetensors file",
            where=path,
            expected="tensors as safetensors",
            got=error,
            remedy=REMEDY,
        ) from None
    _check_keys(model, tensors, path)
    model.load_state_dict(tensors)  # copies, and so casts float16 to the model's float32


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
        finite = bool(own[key].isfinite().all())  # a mask may hold -inf by right
        if finite and tensors[key].is_floating_point() and not bool(tensors[key].isfinite().all()):
            raise UserError(
                "these weights are no weights", where=f"{path}: {key}", expected="finite numbers",
                got="NaN or infinity", remedy=REMEDY,
            )  # fmt: skip


def load_model(
    reference: str | ModelRef, *, class_names: Sequence[str], input_shape: tuple[int, int, int]
) -> Classifier:
    """The classifier that a MODEL argument means, checked against the data's classes and shape.

    A plain ``nn.Module`` is taken to map pictures in [0, 1] to logits. Raises UserError where the
    argument means no model or several, where a user's code fails, and where the data does not fit.
    """
    ref = _one(reference) if isinstance(reference, str) else reference
    model = _frozen(instantiate(ref, class_names, input_shape))
    if isinstance(model, Denoiser):
        raise UserError(f"{ref.name!r} is a denoiser, not a classifier", remedy="name a classifier")
    if not isinstance(model, Classifier):
        model = PlainClassifier(model, len(class_names), input_shape).eval()
    check_attributes(model, ref)
    wanted, got = (len(class_names), tuple(input_shape)), (model.num_classes, tuple(model.input_shape))
    if wanted != got:
        raise UserError(
            f"the model {ref.name!r} does not fit the data",
            expected=f"{wanted[0]} classes, pictures of shape {wanted[1]}",
            got=f"{got[0]} classes, pictures of shape {got[1]}",
            remedy="name the data that the model was made for (--data)",
        )
    if not isinstance(ref, ZooModel):
        _try_out(model, ref)
    return model


def check_attributes(model: Classifier, ref: ModelRef) -> None:
    """UserError where a Classifier of somebody's own code lacks what the contract only declares."""
    classes, shape = (getattr(model, key, None) for key in ("num_classes", "input_shape"))
    fits = isinstance(shape, tuple | list | torch.Size) and len(shape) == 3
    for key, got, good, expected in (
        ("num_classes", classes, isinstance(classes, numbers.Integral), "the number of classes, such as 10"),
        ("input_shape", shape, fits, "(channels, height, width), such as (1, 28, 28)"),
    ):
        if not good:
            raise UserError(
                f"the classifier {ref.name!r} does not say its {key}",
                where=f"{type(model).__name__}.{key}",
                expected=expected,
                got="no such attribute" if got is None else repr(got),
                remedy=f"set self.{key} in its __init__, after super().__init__()",
            )


def _one(reference: str) -> ModelRef:
    found = registry.resolve(reference)
    if len(found) != 1:
        names = ", ".join(ref.name for ref in found)
        raise UserError("one model is wanted here", expected="the name of one", got=f"{reference}: {names}")
    return found[0]


def instantiate(ref: ModelRef, class_names: Sequence[str], input_shape: tuple[int, int, int]) -> nn.Module:
    """The module that a reference means, as its author left it: its mode and gradients untouched.

    The classes and the shape of the data are for those that are made to fit them.
    """
    if isinstance(ref, ZooModel):
        return load(ref.folder)
    if isinstance(ref, FileModel):
        return construct(import_file(ref.path, ref.attribute), where=f"{ref.path}:{ref.attribute}")
    if isinstance(ref, ObjectModel):
        return copy.deepcopy(ref.module)  # the user's own stays as it is
    if isinstance(ref, EntryPointModel):
        return construct(_entry_point(ref.name), where=f"entry point {ref.name}")
    from robustgen.classifiers import external, pipelines

    if ref.library == "diffusers":
        return pipelines.load(ref.model, class_names, input_shape)
    return external.load(ref.library, ref.model)


def _entry_point(name: str) -> Any:
    point = _find_entry_point(name)
    try:
        return point.load()
    except Exception as error:  # the code of another package: anything may come
        raise UserError(
            f"the model {name!r} of another package cannot be loaded",
            where=point.value,
            got=f"{type(error).__name__}: {error}",
        ) from None


def _find_entry_point(name: str) -> Any:
    points = list(entry_points(group="robustgen.models", name=name))
    if not points:
        raise unknown_name("model", name, {p.name for p in entry_points(group="robustgen.models")})
    return points[0]


def _try_out(model: Classifier, ref: ModelRef) -> None:
    """Call a foreign model once, so that its mistakes are found before a run and not within it."""
    x = torch.full((2, *model.input_shape), 0.5)
    given = x.clone()
    try:
        with torch.no_grad():
            logits = model.logits(given)
    except Exception as error:  # the user's code: anything may come
        raise UserError(
            f"the model {ref.name!r} fails on a batch of the data's shape",
            expected=f"logits of shape (2, {model.num_classes}) for pictures of shape {tuple(x.shape)}",
            got=f"{type(error).__name__}: {error}",
        ) from None
    shape = tuple(getattr(logits, "shape", ()))
    if shape != (2, model.num_classes):
        raise UserError(
            f"the model {ref.name!r} returns something else than logits",
            expected=f"shape (2, {model.num_classes}) for pictures of shape {tuple(x.shape)}",
            got=f"{type(logits).__name__} of shape {shape}",
        )
    if not torch.equal(x, given):  # a PlainClassifier's module gets a copy, a Classifier does not
        raise UserError(
            f"the model {ref.name!r} writes into the pictures that it is given",
            expected="pictures left as they are: they are the data of every model after it",
            got="other pictures after a call",
            remedy="write x = x - mean in place of x -= mean, and the like",
        )


def fingerprint_model(ref: ModelRef) -> str:
    """What a stored run remembers a model by: equal fingerprints, equal weights and code of the model."""
    content: list[Any] = [type(ref).__name__]
    if isinstance(ref, ZooModel):
        card: ModelCard = registry.load_card(ref.folder)
        content += [card.arch, card.options, card.weights and card.weights.sha256]
        if card.over is not None:
            folder = _denoiser_folder(card.over, ref.folder / "card.yaml")
            content.append(fingerprint_model(ZooModel(card.over, folder)))
        file, _, attribute = card.arch.partition(":")
        if attribute:
            path = ref.folder / file
            content += [_sha256(path), *map(_sha256, neighbours(path))]
    elif isinstance(ref, FileModel):
        content += [_sha256(ref.path), ref.attribute, *map(_sha256, neighbours(ref.path))]
    elif isinstance(ref, ObjectModel):
        parts = dict(ref.module.named_modules())
        kinds = {type(part) for part in parts.values() if not type(part).__module__.startswith("torch.")}
        content += [repr(ref.module), sorted(map(_source, kinds))]
        content += [{name: _settings(part) for name, part in parts.items()}]
    elif isinstance(ref, EntryPointModel):
        point = _find_entry_point(ref.name)
        content += [point.value, point.dist.version if point.dist else ""]
    elif isinstance(ref, OutsideModel):
        content += [ref.library, ref.model, _version(ref.library)]
    return config.fingerprint(content)


def _settings(module: nn.Module) -> dict[str, str]:
    """What a module's author set by hand, which neither its code nor its state_dict says: a temperature."""
    found = {}
    for key, value in vars(module).items():
        values = value if isinstance(value, tuple | list) else [value]
        if key != "training" and all(isinstance(v, bool | int | float | str | None) for v in values):
            found[key] = repr(value)
    return found


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # typed into an interpreter
        return kind.__qualname__


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError("cannot read the file", where=path, got=error.strerror) from None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
