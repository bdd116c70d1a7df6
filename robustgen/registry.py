"""Where models and protocols are found, and what a MODEL on the command line may be."""

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
"""Network calls a picture, from which a model runs only where it is named."""
OUTSIDE = ("robustbench", "timm", "torchvision", "diffusers")


def roots(folder: Literal["models", "attacks", "reports"]) -> list[Path]:
    """Folders of that name: the working directory's, the checkout's, the installed package's."""
    package = Path(__file__).resolve().parent
    places = [Path.cwd() / folder, package / "_data" / folder]
    # A neighbour of an installed package is site-packages, never a checkout.
    if package.parent != Path(sysconfig.get_paths()["purelib"]).resolve():
        places.insert(1, package.parent / folder)
    return list(dict.fromkeys(place.resolve() for place in places if place.is_dir()))


def model_folders() -> dict[str, Path]:
    """Zoo name to folder, sorted by name; two folders of one name are an error."""
    return _unique("model", [p.parent for root in roots("models") for p in sorted(root.glob("*/card.yaml"))])


def protocol_files() -> dict[str, Path]:
    """Protocol name to YAML file, sorted by name; two files of one name are an error."""
    return _unique("protocol", [p for root in roots("attacks") for p in sorted(root.glob("*.yaml"))])


def _unique(kind: str, paths: list[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        name = path.stem if path.suffix == ".yaml" else path.name
        if name in found:
            raise UserError(
                f"two {kind}s are named {name!r}",
                where=f"{found[name]} and {path}",
                remedy="rename one of them, or run from another folder",
            )
        found[name] = path
    return dict(sorted(found.items()))


def load_card(folder: Path) -> ModelCard:
    """The card of a model's folder; its name must be the folder's."""
    card = strict.read(ModelCard, folder / "card.yaml")
    if card.name != folder.name:
        raise UserError(
            "a card's name must be that of its folder",
            where=folder / "card.yaml",
            expected=folder.name,
            got=card.name,
            remedy="rename the folder, or mend the card",
        )
    return card


def load_protocol(name: str) -> Protocol:
    """A protocol by name, or by the path of a YAML file.

    Only one that is named by its path may bring attacks of its own (FILE.py:NAME, seen from its folder):
    no code runs that the user has not pointed at.
    """
    if name.endswith((".yaml", ".yml")):
        protocol = strict.read(Protocol, Path(name))
        found = [_beside(spec, Path(name).parent) for spec in protocol.evaluations]
        return protocol.model_copy(update={"evaluations": found})
    files = protocol_files()
    if name not in files:
        raise unknown_name("protocol", name, files)
    protocol = strict.read(Protocol, files[name])
    if protocol.name != name:
        raise UserError(
            "a protocol's name must be that of its file", where=files[name], expected=name, got=protocol.name,
            remedy="rename the file, or mend the name",
        )  # fmt: skip
    for spec in protocol.evaluations:
        if isinstance(spec, AttackSpec) and ".py:" in spec.attack:
            raise UserError(
                "a protocol with an attack of its own is named by its path", where=files[name],
                got=spec.attack, remedy=f"--protocol {files[name]}, if you trust that file",
            )  # fmt: skip
    return protocol


def _beside(spec: EvaluationSpec, folder: Path) -> EvaluationSpec:
    if isinstance(spec, AttackSpec) and ".py:" in spec.attack:
        return spec.model_copy(update={"attack": str(folder / spec.attack)})
    return spec


@dataclass(frozen=True)
class ZooModel:
    """A trained model: a folder of models/, by its name."""

    name: str
    folder: Path

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class FolderModel(ZooModel):
    """The folder of a trained model that lies elsewhere, named by its path."""

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
    """A model that another package registered in the group ``robustgen.models``."""

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
    """A module that ``robustgen.evaluate`` was given itself; no command line can name it."""

    name: str
    module: nn.Module

    def __str__(self) -> str:
        return f"{OBJECT}:{self.name}"


ModelRef = ZooModel | FileModel | EntryPointModel | OutsideModel | ObjectModel


def resolve(reference: str) -> list[ModelRef]:
    """What a MODEL argument means; a glob may mean several classifiers of the zoo."""
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
        if library not in OUTSIDE:
            raise unknown_name("model source", library, OUTSIDE, where=reference)
        return [OutsideModel(slug(f"{library}-{tail}"), library, tail)]
    zoo = model_folders()
    if reference in zoo:
        return [ZooModel(reference, zoo[reference])]
    if matching := fnmatch.filter(zoo, reference):
        found = [model for model, _ in _zoo(reference)]
        if not found:
            raise UserError(
                "this pattern matches no classifier", where=reference, expected="one that some match",
                got=", ".join(matching), remedy="'robustgen list models' names them",
            )  # fmt: skip
        _refuse_code(reference, [model.name for model in found if code_of(model)])
        return [*found]
    registered = {point.name for point in entry_points(group="robustgen.models")}
    if reference in registered:
        return [EntryPointModel(reference)]
    if (Path(reference) / "card.yaml").is_file():
        folder = Path(reference).resolve()
        kind = ZooModel if zoo.get(folder.name) == folder else FolderModel
        return [kind(folder.name, folder)]
    outside = "a trained model's folder, FILE.py:NAME, " + ", ".join(f"{library}:NAME" for library in OUTSIDE)
    raise unknown_name("model", reference, [*zoo, *registered], also=outside)


def resolve_one(reference: str, *, where: object = None) -> ModelRef:
    """The one model that a MODEL argument means; UserError where a glob means several."""
    found = resolve(reference)
    if len(found) != 1:
        names = ", ".join(ref.name for ref in found)
        raise UserError(
            "one model is wanted here", where=where, expected="the name of one", got=f"{reference}: {names}"
        )
    return found[0]


def _refuse_code(pattern: str, names: list[str]) -> None:
    if names:
        raise UserError(
            "this pattern matches models that run code of their own",
            where=pattern,
            expected="such a model by its whole name",
            got=", ".join(names),
            remedy="name each model that you mean",
        )


def code_of(reference: ModelRef) -> Path | None:
    """The Python file that a model runs, where it is neither robustgen's nor an installed package's.

    It runs only where the command line names the file or the model.
    """
    if isinstance(reference, FileModel):
        return reference.path
    if isinstance(reference, ZooModel):
        own = own_code(load_card(reference.folder).arch)
        return reference.folder / own[0] if own else None
    return None


def given(module: nn.Module, name: str | None = None) -> ObjectModel:
    """A live module as a model, under its name or that of its class."""
    return ObjectModel(slug(name or type(module).__name__), module)


def references(models: object) -> list[ModelRef]:
    """What a Python caller means by models: MODEL arguments and live modules, or modules by name.

    Raises UserError for anything else, for none, and for two of one name.
    """
    from torch.nn import Module

    named: list[tuple[str | None, Any]]
    if isinstance(models, Mapping):
        named = list(models.items())
    elif isinstance(models, str | Module) or not isinstance(models, Iterable):
        named = [(None, models)]
    else:
        named = [(None, model) for model in models]
    found: list[ModelRef] = []
    for name, model in named:
        if not isinstance(model, str | Module):
            raise UserError(
                "this is not a model", where=name or "models", expected="a name as on the command line, or a "
                "torch.nn.Module", got=type(model).__name__,
            )  # fmt: skip
        found += resolve(model) if isinstance(model, str) else [given(model, name)]
    if not found:
        raise UserError("no model was named", where="models", expected="one or more", got="none")
    return unique(found)


def unique(references: Iterable[ModelRef]) -> list[ModelRef]:
    """Each model once; two of one name are a UserError."""
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
    """Every MODEL of a command line, each once; none means the classifiers of the zoo for that data.

    Of these, one of ``MANY_CALLS`` a picture has to be named: minutes would become hours. So has one
    with code of its own, which nobody but its author may know.
    """
    if references:
        return unique(ref for reference in references for ref in resolve(reference))
    zoo, held_back = _zoo(), left_out(data)
    fitting = [model for model, card in zoo if card.data == data and model.name not in held_back]
    if not fitting:
        raise UserError(
            f"the zoo has no classifier for the data set {data!r}",
            expected=f"one of: {', '.join(sorted({card.data for _, card in zoo})) or 'none'}",
            got=data,
            remedy="name your own model: FILE.py:NAME",
        )
    return [*fitting]


def left_out(data: str) -> dict[str, str]:
    """The zoo's classifiers for that data that ``resolve_all`` gives only by name, and why."""
    found = {}
    for model, card in _zoo():
        if card.data == data and own_code(card.arch):
            found[model.name] = "code of its own"
        elif card.data == data and card.calls >= MANY_CALLS:
            found[model.name] = "many network calls a picture"
    return found


def _zoo(pattern: str = "*") -> list[tuple[ZooModel, ModelCard]]:
    """The zoo's classifiers that a pattern matches, each with its card."""
    folders = model_folders()
    found = [
        (ZooModel(name, folders[name]), load_card(folders[name])) for name in fnmatch.filter(folders, pattern)
    ]
    return [(model, card) for model, card in found if card.family != "denoiser"]


def slug(text: str) -> str:
    """The text as a name of a folder: [a-z0-9._-] alone; "model" where nothing is left of it."""
    kept = (c if (c.isascii() and c.isalnum()) or c in "._-" else "-" for c in text.lower())
    return "".join(kept).strip("-.") or "model"
