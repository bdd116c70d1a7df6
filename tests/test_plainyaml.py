"""YAML that asks for more than plain values: each is refused in words, and none of it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustgen.errors import UserError
from robustgen.plainyaml import MAX_BYTES, read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
)


def said(tmp_path: Path, text: str | bytes) -> UserError:
    file = tmp_path / "x.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        read_yaml(file)
    assert all(caught.value.details[key] is not None for key in ("where", "expected", "got", "remedy"))
    assert str(file) in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:pathlib.Path.touch", "!!python/name:os.system", "!!timestamp", "!mine", "!!int"],
)
def test_no_tag_is_read_and_nothing_runs(tmp_path: Path, tag: str):
    error = said(tmp_path, f"name: x\nvalue: {tag} [{tmp_path / 'ran'}]\n")
    assert "tags such as" in str(error.details["got"])
    assert "line 2" in str(error.details["where"])
    assert not (tmp_path / "ran").exists()


def test_aliases_are_read_and_a_bomb_of_them_is_not(tmp_path: Path):
    (tmp_path / "x.yaml").write_text("a: &a {b: 1}\nc: *a\n")
    assert read_yaml(tmp_path / "x.yaml") == {"a": {"b": 1}, "c": {"b": 1}}
    assert "aliases expanded" in str(said(tmp_path, BOMB))


@pytest.mark.parametrize("text", ["a: &a [*a]\n", "&a {b: *a}\n", "a: " + "[" * 5000, "[" * 400 + "]" * 400])
def test_circles_and_depths_without_end(tmp_path: Path, text: str):
    assert "not valid YAML" in str(said(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("seed: 1\nseed: 2\n", "'seed' occurs here twice"),
        ("? [a, b]\n: 1\n", "a key must be plain text"),
        ("a: 0x_\n", "invalid literal"),
        ("a: [1\n", "line 2"),
        ("\x00", "unacceptable character"),
        (b"a: \xff\n", "cannot read the file"),
        ("a: " + "x" * MAX_BYTES, "bytes"),
        ("a: [" + "1," * 30_000 + "]", "values"),
    ],
)
def test_what_is_no_plain_yaml_says_so(tmp_path: Path, text: str | bytes, part: str):
    assert part in str(said(tmp_path, text))


def test_a_date_is_text(tmp_path: Path):
    (tmp_path / "x.yaml").write_text("a: 2001-99-99\nb: 2026-11-25\n")
    assert read_yaml(tmp_path / "x.yaml") == {"a": "2001-99-99", "b": "2026-11-25"}
