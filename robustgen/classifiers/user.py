"""Imports models from a user's Python file or package; errors name the line of the file."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from robustgen.errors import UserError, unknown_name


def import_file(path: Path, attribute: str, kind: str = "model") -> Any:
    """An attribute of a Python file, imported under a unique module name; ``kind`` is for the error message.

    The file runs once per process, and again if its content has changed; the modules that it imports do
    not. While it runs, its folder is on sys.path, so that it may import the files beside it.
    """
    path = path.resolve()
    module = _imported(path)
    if not hasattr(module, attribute):
        names = [
            key for key, value in vars(module).items() if not key.startswith("_")
            and (isinstance(value, nn.Module) or _module_name(value) == module.__name__) and callable(value)
        ]  # fmt: skip
        raise unknown_name(kind, attribute, names, where=path)
    return getattr(module, attribute)


def local_imports(path: Path) -> list[Path]:
    """The files in or below the folder of a user's file that it imports, directly or indirectly.

    They are found by the modules of the objects in its namespace and by its import statements (a constant
    does not know its module). Installed packages are left out.
    """
    path = path.resolve()
    module = _imported(path)
    found, pending = {path}, [module]
    while pending:
        module = pending.pop()
        names = {module.__package__ or "", *map(_module_name, vars(module).values()), *_imports(module)}
        for name in names & sys.modules.keys():
            file = Path(getattr(sys.modules[name], "__file__", None) or "/")
            installed = bool({"site-packages", "dist-packages"} & {*file.parts})
            ours = name.partition(".")[0] == "robustgen"  # the file may lie in a checkout of robustgen
            if file.is_relative_to(path.parent) and not installed and not ours and file not in found:
                found.add(file)
                pending.append(sys.modules[name])
    return sorted(found - {path})


def code_digests(path: Path) -> list[str]:
    """The sha256 of a user's file and of each of its ``local_imports``."""
    try:
        own = hashlib.sha256(path.read_bytes()).hexdigest()
        return [own, *(hashlib.sha256(file.read_bytes()).hexdigest() for file in local_imports(path))]
    except OSError as error:
        raise UserError(
            "cannot read the file", where=error.filename, expected="a Python file, and those that it imports",
            got=error.strerror,
        ) from None  # fmt: skip


def _module_name(value: object) -> str:
    """The name of a module, or of the module that defines a class or function."""
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    return name if isinstance(name, str) else ""


def _imports(module: ModuleType) -> Iterator[str]:
    """The names in the import statements of a module; ``from a import b`` gives a and a.b."""
    try:
        tree = ast.parse(Path(str(module.__file__)).read_bytes())
    except (OSError, SyntaxError, ValueError):  # not a Python source file
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (module.__package__ or not node.level):
            whole = importlib.util.resolve_name("." * node.level + (node.module or ""), module.__package__)
            yield from (whole, *(f"{whole}.{alias.name}" for alias in node.names))


def _imported(path: Path) -> ModuleType:
    """The module of a file; it is executed unless this version of it has been already."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            "there is no such Python file", where=path, got=error.strerror, remedy="check the path"
        ) from None
    digest = hashlib.sha256(str(path).encode() + b"\0" + content).hexdigest()[:12]
    name = f"robustgen_user_{path.stem}_{digest}"
    return sys.modules.get(name) or _execute(path, content, name)


def _execute(path: Path, content: bytes, name: str) -> ModuleType:
    """Run the content of a file as a module and register it as ``name``."""
    spec = importlib.util.spec_from_file_location(name, path, loader=SourceFileLoader(name, str(path)))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module there
    try:
        with _importable(path.parent):
            # not by the loader, which would use stale bytecode for a file edited within a second
            exec(compile(content, str(path), "exec"), module.__dict__)
        _check_namesakes(module, path.parent)
    except (
        Exception,
        SystemExit,
    ) as error:  # the user's code: any exception, SystemExit of an argument parser too
        del sys.modules[name]
        if isinstance(error, ImportError) and "relative import" in str(error):
            raise user_code_error(
                "this file is part of a package", error, path,
                remedy="import the files beside it by their plain names, or install its package and name the "
                "model as an entry point of the group robustgen.models",
            ) from None  # fmt: skip
        raise user_code_error("this file cannot be imported", error, path) from None
    return module


def _check_namesakes(module: ModuleType, folder: Path) -> None:
    """Raise UserError if an import of a file beside it gave another, earlier imported, file of that name.

    Python keeps one module per name in a process.
    """
    seen, pending = {module.__name__}, [module]
    while pending:
        for name in {*_imports(pending.pop())} & sys.modules.keys() - seen:
            seen.add(name)
            place = folder.joinpath(*name.split("."))
            meant = next((p for p in (place / "__init__.py", place.with_suffix(".py")) if p.is_file()), None)
            got = getattr(sys.modules[name], "__file__", None)
            if meant is None or got is None or name.partition(".")[0] == "robustgen":
                continue
            if Path(got).resolve() != meant and Path(got).read_bytes() != meant.read_bytes():
                raise UserError(
                    f"two files are imported as {name!r}, and a process can hold only one of them",
                    where=folder, expected=meant, got=got,
                    remedy="rename one of them, or make a report for each model and join the reports with "
                    "'robustgen compare'",
                )  # fmt: skip
            pending.append(sys.modules[name])


def find_entry_point(name: str) -> EntryPoint:
    """The entry point of the group robustgen.models with this name."""
    points = list(entry_points(group="robustgen.models", name=name))
    if not points:
        raise unknown_name("model", name, {p.name for p in entry_points(group="robustgen.models")})
    return points[0]


def construct(thing: Any, *, where: str, **options: Any) -> Any:
    """A torch module: ``thing`` itself, or what the class or function ``thing`` returns for ``options``."""
    path = Path(where.rpartition(":")[0] or where)
    wanted = "a torch.nn.Module, or a class or function that makes one"
    if not isinstance(thing, nn.Module):
        if not callable(thing):
            raise UserError(
                "this is not a model",
                where=where,
                expected=wanted,
                got=type(thing).__name__,
            )
        try:
            with _importable(path.parent):
                thing = thing(**options)
        except (Exception, SystemExit) as error:  # the user's code
            what = f"this model cannot be made{' with ' if options else ''}"
            what += ", ".join(f"{key}={value!r}" for key, value in options.items())
            raise user_code_error(what, error, path, where=where) from None
    if not isinstance(thing, nn.Module):
        raise UserError("this is not a model", where=where, expected=wanted, got=type(thing).__name__)
    return thing


def user_code_error(
    what: str, error: Exception | SystemExit, path: Path, *, where: object = None,
    remedy: str = "mend the file; run it with python for the whole traceback",
) -> UserError:  # fmt: skip
    """A UserError for an exception in a user's file, with the line of that file."""
    if isinstance(error, UserError):
        return error
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else (lines[-1] if lines else None)
    place = where or path
    return UserError(
        what,
        where=place if line is None else f"{place}, line {line}",
        got=f"{type(error).__name__}: {error}",
        remedy=remedy,
    )


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
