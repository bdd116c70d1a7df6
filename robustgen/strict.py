"""YAML files as validated pydantic types: unknown keys are errors, and 8/255 is read as a fraction."""

from __future__ import annotations

import hashlib
import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import (
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

# Exponents of three digits at most: Fraction("1e999999999") would be computed for hours.
_FRACTION = re.compile(r"[+-]?(\d+/\d+|(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?)", re.ASCII | re.IGNORECASE)


def parse_number(text: str) -> float | None:
    """Parse a number such as 8/255 or 1e-2; None if the text is not one."""
    try:
        if len(text) <= 64 and _FRACTION.fullmatch(text := text.replace(" ", "")):
            return float(Fraction(text))
    except (ZeroDivisionError, OverflowError):
        pass
    return None


def _fraction(value: Any) -> Any:
    if isinstance(value, bool):  # which pydantic takes for 1 and 0
        raise ValueError("expected a number, not yes or no")
    if not isinstance(value, str):
        return value
    number = parse_number(value)
    if number is None:
        raise ValueError(f"expected a number or a fraction such as 8/255, got {value[:64]!r}")
    return number


def _read_options(value: Any) -> Any:
    """Turn texts such as 8/255 and 1e-2, which YAML does not read as numbers, into numbers.

    Digits alone are text only if they were quoted, and stay text.
    """
    if isinstance(value, dict):
        return {key: _read_options(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_read_options(inner) for inner in value]
    if not isinstance(value, str) or not {"/", "e", "E"} & {*value}:
        return value
    number = parse_number(value)
    return value if number is None else number


Number = Annotated[float, BeforeValidator(_fraction)]
Positive = Annotated[float, BeforeValidator(_fraction), Field(gt=0)]
Count = Annotated[int, Field(gt=0, lt=2**31)]
Options = Annotated[dict[str, JsonValue], BeforeValidator(_read_options)]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=100)]


class Strict(BaseModel):
    """Base of all types of YAML: frozen, no unknown keys, no infinite or NaN numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_bools(cls, content: Any) -> Any:
        """Refuse true and false, which pydantic reads as 1 and 0, unless the field is a bool."""
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
        """The first 16 hex digits of the content's sha256."""
        return fingerprint(self.model_dump(mode="json"))


def fingerprint(content: object) -> str:
    """The first 16 hex digits of the sha256 of JSON content in canonical form."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


T = TypeVar("T", bound=Strict)


def read(kind: type[T], path: Path) -> T:
    """Read a YAML file and validate it as ``kind``. Raises UserError that names every wrong key."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(
            "this file must be a mapping of keys", where=path, expected="lines such as 'name: ...'",
            got="nothing" if content is None else type(content).__name__, remedy=REMEDY,
        )  # fmt: skip
    return validate(kind, content, where=path)


def validate(kind: type[T], content: dict[str, Any], *, where: object) -> T:
    """Validate a mapping as ``kind``. Raises UserError that names every wrong key."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        # an unknown key comes first: a misspelt key is also reported as missing
        first, *others = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        key = _key(first["loc"])
        if first["type"] == "extra_forbidden":
            siblings = _fields_at(kind, first["loc"][:-1])
            if siblings:
                raise unknown_name("key", key.rsplit(".", 1)[-1], siblings, where=f"{where}: {key}") from None
        problems = "; ".join(f"{_key(e['loc'])}: {_expected(e)}" for e in (first, *others[:4]))
        what = f"the value of {key!r} is not valid" if key else "these values do not go together"
        raise UserError(
            f"the key {key!r} is missing" if first["type"] == "missing" else what,
            where=where,
            expected=_expected(first),
            got=_got(first),
            remedy=f"all problems: {problems}" if others else REMEDY,
        ) from None


def _expected(problem: ErrorDetails) -> str:
    """What would have been right."""
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


def _got(problem: ErrorDetails) -> str:
    """What was found, in one line; of a mapping its keys."""
    got = problem.get("ctx", {}).get("tag", problem["input"])
    if problem["type"] == "missing":
        return "nothing"
    return (f"the keys {', '.join(map(str, got)) or '(none)'}" if isinstance(got, dict) else repr(got))[:120]


def _key(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)[:200]


def _fields_at(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The known keys at a location inside a file of this kind; none if that is ambiguous."""
    kinds = [kind]
    for part in location:
        tagged = [k for k in kinds if part in _tags(k)]
        if len(kinds) > 1 and tagged:  # pydantic puts the tag of a union's member into the location
            kinds = tagged
        else:  # an index of a list or a key of a mapping: the kinds stay the same
            kinds = [
                f for k in kinds if part in k.model_fields for f in _kinds(k.model_fields[str(part)])
            ] or kinds
    return list(kinds[0].model_fields) if len(kinds) == 1 else []


def _kinds(field: Any) -> list[type[BaseModel]]:
    """The pydantic models that occur in a field's type."""
    annotation = field.annotation if isinstance(field, FieldInfo) else field
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for inner in get_args(annotation) for kind in _kinds(inner)]


def _tags(kind: type[BaseModel]) -> tuple[Any, ...]:
    return get_args(kind.model_fields["kind"].annotation) if "kind" in kind.model_fields else ()
