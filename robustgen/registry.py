"""Finds models and protocols, and resolves a MODEL of the command line to a reference."""

from __future__ import annotations

import fnmatch
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from robustgen import strict
from robustgen.config import AttackSpec, EvaluationSpec, ModelCard, Protocol, own_code
from robustgen.errors import UserError, unknown_name

if TYPE_CHECKING:
    from torch import nn

OBJECT = "python"
MANY_CALLS = 10
"""A zoo model of at least so many network calls a picture runs only if it is named."""
LIBRARIES = ("robustbench", "timm", "torchvision", "diffusers")


def roots(folder: Literal["models", "attacks", "reports"]) -> list[Path]:
    """The folders of that name: in the working directory, the checkout and the installed package."""
    package = Path(__file__).resolve().parent
    places = [Path.cwd() / folder, package / "_data" / folder]
    # A neighbour of an installed package is site-packages, never a checkout.
    if package.parent != Path(sysconfig.get_paths()["purelib"]).resolve():
        places.insert(1, package.parent / folder)
    return list(dict.fromkeys(place.resolve() for place in places if place.is_dir()))


def model_folders() -> dict[str, Path]:
    """Zoo name to folder, sorted by name. Raises UserError if two folders have the same name."""
    return _unique("model", [p.parent for root in roots("models") for p in sorted(root.glob("*/card.yaml"))])


def protocol_files() -> dict[str, Path]:
    """Protocol name to YAML file, sorted by name. Raises UserError if two files have the same name."""
    return _unique("protocol", [p for root in roots("attacks") for p in sorted(root.glob("*.yaml"))])


def _unique(kind: str, paths: list[Path]) -> dict[str, Path]:
    by_name: dict[str, Path] = {}
    for path in paths:
        name = path.stem if path.suffix == ".yaml" else path.name
        if name in by_name:
            raise UserError(
                f"two {kind}s are named {name!r}",
                where=f"{by_name[name]} and {path}",
                remedy="rename one of them, or run from another folder",
            )
        by_name[name] = path
    return dict(sorted(by_name.items()))


def load_card(folder: Path) -> ModelCard:
    """Load the card of a model's folder, whose name it must have."""
    card = strict.read(ModelCard, folder / "card.yaml")
    if card.name != folder.name:
        raise UserError(
            "a card's name must be that of its folder",
            where=folder / "card.yaml",
            expected=folder.name,
            got=card.name,
            remedy="rename the folder, or correct the card",
        )
    return card


def load_protocol(name: str) -> Protocol:
    """Load a protocol by name or by the path of its YAML file.

    Only a protocol that is named by its path may use attacks from Python files (FILE.py:NAME, relative to
    its folder), so that no code runs that the user has not pointed at.
    """
    if name.endswith((".yaml", ".yml")):
        protocol = strict.read(Protocol, Path(name))
        specs = [_resolve_attack(spec, Path(name).parent) for spec in protocol.evaluations]
        return protocol.model_copy(update={"evaluations": specs})
    files = protocol_files()
    if name not in files:
        raise unknown_name("protocol", name, files)
    protocol = strict.read(Protocol, files[name])
    if protocol.name != name:
        raise UserError(
            "a protocol's name must be that of its file", where=files[name], expected=name, got=protocol.name,
            remedy="rename the file, or correct the name",
        )  # fmt: skip
    for spec in protocol.evaluations:
        if isinstance(spec, AttackSpec) and ".py:" in spec.attack:
            raise UserError(
                "a protocol with an attack of its own is named by its path", where=files[name],
                got=spec.attack, remedy=f"--protocol {files[name]}, if you trust that file",
            )  # fmt: skip
    return protocol


def _resolve_attack(spec: EvaluationSpec, folder: Path) -> EvaluationSpec:
    if isinstance(spec, AttackSpec) and ".py:" in spec.attack:
        return spec.model_copy(update={"attack": str(folder / spec.attack)})
    return spec


@dataclass(frozen=True)
class ZooModel:
    """A trained model in a folder of models/, named by its name."""

    name: str
    folder: Path

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class FolderModel(ZooModel):
    """A trained model in a folder elsewhere, named by its path."""

    def __str__(self) -> str:
        return str(self.folder)


@dataclass(frozen=True)
class FileModel:
    """``FILE.py:NAME``: a module, a class, or a function without arguments."""

    name: str
    path: Path
    attribute: str

    def __str__(self) -> str:
        return f"{self.path}:{self.attribute}"


@dataclass(frozen=True)
class EntryPointModel:
    """A model that an installed package registered in the entry-point group ``robustgen.models``."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class OutsideModel:
    """``robustbench:NAME``, ``timm:NAME``, ``torchvision:NAME`` or ``diffusers:NAME``."""

    name: str
    library: str
    model: str

    def __str__(self) -> str:
        return f"{self.library}:{self.model}"


@dataclass(frozen=True)
class ObjectModel:
    """A ``torch.nn.Module`` that was passed to ``robustgen.evaluate``; no command line can name it."""

    name: str
    module: nn.Module

    def __str__(self) -> str:
        return f"{OBJECT}:{self.name}"


ModelRef = ZooModel | FileModel | EntryPointModel | OutsideModel | ObjectModel


def resolve(reference: str) -> list[ModelRef]:
    """Resolve a MODEL argument; a glob may match several classifiers of the zoo."""
    head, colon, tail = reference.rpartition(":")
    if colon and head.endswith(".py"):
        path = Path(head)
        if not path.is_file():
            raise UserError("there is no such file", where=path, got=reference, remedy="check the path")
        return [FileModel(slug(f"{path.stem}-{tail}"), path.resolve(), tail)]
    library, colon, tail = reference.partition(":")
    if colon:
        if library == OBJECT:
            raise UserError(
                f"the model {tail!r} was given to robustgen.evaluate as an object: no command can name it",
                remedy="put it into a file and name it as FILE.py:NAME",
            )
        if library not in LIBRARIES:
            raise unknown_name("model source", library, LIBRARIES, where=reference)
        return [OutsideModel(slug(f"{library}-{tail}"), library, tail)]
    zoo = model_folders()
    registered = {point.name for point in entry_points(group="robustgen.models")}
    if reference in zoo and reference in registered:
        raise UserError(
            f"two models are named {reference!r}", expected="one of that name",
            where=f"{zoo[reference]} and an entry point of the group robustgen.models",
            got=reference, remedy="rename the entry point, or name the folder by its path",
        )  # fmt: skip
    if reference in zoo:
        return [ZooModel(reference, zoo[reference])]
    if matching := fnmatch.filter(zoo, reference):
        models = [model for model, _ in _zoo(reference)]
        if not models:
            raise UserError(
                "this pattern matches no classifier", where=reference, expected="one that some match",
                got=", ".join(matching), remedy="'robustgen list models' names them",
            )  # fmt: skip
        _refuse_code(reference, [model.name for model in models if user_code(model)])
        return [*models]
    if reference in registered:
        return [EntryPointModel(reference)]
    if (Path(reference) / "card.yaml").is_file():
        folder = Path(reference).resolve()
        kind = ZooModel if zoo.get(folder.name) == folder else FolderModel
        return [kind(folder.name, folder)]
    if reference.endswith(".py"):
        raise UserError(
            "a Python file may hold several models", where=reference, expected="FILE.py:NAME", got=reference,
            remedy=f"name the class or function that is meant, as in {reference}:Net",
        )  # fmt: skip
    if {*"*?["} & {*reference}:
        raise UserError(
            "this pattern matches no model of the zoo", where=reference, expected="one that some match",
            got="none", remedy="'robustgen list models' names them",
        )  # fmt: skip
    outside = ", ".join(f"{library}:NAME" for library in LIBRARIES)
    also = f"a trained model's folder, FILE.py:NAME, {outside}"
    raise unknown_name("model", reference, [*zoo, *registered], also=also)


def resolve_one(reference: str, *, where: object = None) -> ModelRef:
    """Resolve a MODEL argument to one model. Raises UserError if it matches several."""
    refs = resolve(reference)
    if len(refs) != 1:
        names = ", ".join(ref.name for ref in refs)
        raise UserError(
            f"{reference!r} matches several models", where=where, expected="the name of one model", got=names
        )
    return refs[0]


def _refuse_code(pattern: str, names: list[str]) -> None:
    if names:
        raise UserError(
            "this pattern matches models that run code of their own",
            where=pattern,
            expected="such a model by its whole name",
            got=", ".join(names),
            remedy="name each model that you mean",
        )


def user_code(reference: ModelRef) -> Path | None:
    """The user's Python file that a model runs; None if its code is robustgen's or an installed package's.

    It runs only if the command line names the file or the model.
    """
    if isinstance(reference, FileModel):
        return reference.path
    if isinstance(reference, ZooModel):
        own = own_code(load_card(reference.folder).arch)
        return reference.folder / own[0] if own else None
    return None


def from_module(module: nn.Module, name: str | None = None) -> ObjectModel:
    """A live module as a model, named ``name`` or after its class."""
    return ObjectModel(slug(name or type(module).__name__), module)


def model_refs(models: object) -> list[ModelRef]:
    """Resolve the ``models`` of ``robustgen.evaluate``: one or several MODEL arguments and live modules, or a
    mapping of names to modules.

    Raises UserError for anything else, for no model, and for two of the same name.
    """
    from torch.nn import Module

    named: list[tuple[str | None, Any]]
    if isinstance(models, Mapping):
        named = list(models.items())
    elif isinstance(models, str | Path | Module) or not isinstance(models, Iterable):
        named = [(None, models)]
    else:
        named = [(None, model) for model in models]
    refs: list[ModelRef] = []
    for name, model in named:
        if not isinstance(model, str | Path | Module):
            raise UserError(
                "this is not a model", where=name or "models", expected="a name as on the command line, or a "
                "torch.nn.Module", got=type(model).__name__,
            )  # fmt: skip
        refs += [from_module(model, name)] if isinstance(model, Module) else resolve(str(model))
    if not refs:
        raise UserError("no model was named", where="models", expected="one or more", got="none")
    return without_duplicates(refs)


def without_duplicates(references: Iterable[ModelRef]) -> list[ModelRef]:
    """Each model once. Raises UserError if two different models have the same name."""
    named: dict[str, ModelRef] = {}
    for ref in references:
        if named.setdefault(ref.name, ref) != ref:
            raise UserError(
                f"two models would both be named {ref.name!r}",
                got=f"{named[ref.name]} and {ref}",
                remedy="rename one of the files, or the function or class in it; live modules go by the keys "
                "of a mapping: evaluate({'first': one, 'second': other})",
            )
    return list(named.values())


def resolve_all(references: list[str], data: str) -> list[ModelRef]:
    """Resolve the MODEL arguments of a command line; without any, the zoo's classifiers for that data.

    Of the zoo, the models of ``named_only`` are left out then: they would turn minutes into hours, or run
    code that only their author may know.
    """
    if references:
        return without_duplicates(ref for reference in references for ref in resolve(reference))
    zoo, held_back = _zoo(), named_only(data)
    fitting = [model for model, card in zoo if card.data == data and model.name not in held_back]
    if not fitting:
        raise UserError(
            f"the zoo has no classifier for the data set {data!r}",
            expected=f"one of: {', '.join(sorted({card.data for _, card in zoo})) or 'none'}",
            got=data,
            remedy="name your own model: FILE.py:NAME",
        )
    return [*fitting]


def named_only(data: str) -> dict[str, str]:
    """The zoo's classifiers for that data that run only if they are named: name to reason."""
    reasons = {}
    for model, card in _zoo():
        if card.data == data and own_code(card.arch):
            reasons[model.name] = "code of its own"
        elif card.data == data and card.calls >= MANY_CALLS:
            reasons[model.name] = "many network calls a picture"
    return reasons


def _zoo(pattern: str = "*") -> list[tuple[ZooModel, ModelCard]]:
    """The zoo's classifiers that match a glob pattern, each with its card."""
    folders = model_folders()
    with_cards = [
        (ZooModel(name, folders[name]), load_card(folders[name])) for name in fnmatch.filter(folders, pattern)
    ]
    return [(model, card) for model, card in with_cards if card.family != "denoiser"]


def slug(text: str) -> str:
    """The text as a folder name of [a-z0-9._-]; "model" if nothing is left of it."""
    kept = (c if (c.isascii() and c.isalnum()) or c in "._-" else "-" for c in text.lower())
    return "".join(kept).strip("-.") or "model"
