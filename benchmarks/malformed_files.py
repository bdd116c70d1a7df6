"""Makers of broken files, one a kind of input: (chance, folder) -> Case; for malformed.py and the tests.

Each begins with a sound file, breaks it in its bytes or in what it says, and brings a second reader of its
own (PyYAML, Pillow, numpy, or a few lines here) that an answer must agree with.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import struct
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import yaml
from PIL import Image

from robustgen import added, data, registry, strict
from robustgen.classifiers import build, load
from robustgen.config import Protocol
from robustgen.plan import plan
from robustgen.training.recipe import Recipe


class Case(NamedTuple):
    """An input: how it was broken, how a command reads it, and whether an answer is right."""

    how: str
    read: Callable[[], Any]
    right: Callable[[Any], bool]


# --- breaking things ---------------------------------------------------------------------------------

NASTY: tuple[object, ...] = (
    None, True, False, -1, 0, 0.5, 10**30, 2**63, math.inf, math.nan, -0.0, "", " ", "x" * 3000, "\x07", "☃",
    "8/0", "1e999999999", "nan", "0x10", "../../etc/passwd", "/etc/passwd", "..", "a/b", "os:system",
    "x.py:y", [], {}, [[]], [None], {"a": 1}, {1: 2}, {"../x": 1}, "2026-11-25", "*", "imagefolder:/",
    "pickle:x",
)  # fmt: skip


def broken_bytes(chance: Random, content: bytes) -> tuple[str, bytes]:
    """Some bytes flipped, cut, doubled, put in or zeroed, and in words which."""
    work = bytearray(content)
    how = chance.choice(("flip", "cut", "double", "insert", "zero", "empty", "head"))
    place = chance.randrange(len(work))
    length = chance.randint(1, 64)
    if how == "flip":
        for _ in range(chance.randint(1, 8)):
            work[chance.randrange(len(work))] ^= 1 << chance.randrange(8)
    elif how == "cut":
        del work[place:]
    elif how == "double":
        work[place:place] = work[place : place + length]
    elif how == "insert":
        work[place:place] = chance.randbytes(length)
    elif how == "zero":
        work[place : place + length] = bytes(len(work[place : place + length]))
    elif how == "empty":
        work = bytearray(chance.choice((b"", b"\0", b"PK\x03\x04", b"\x80\x04.", b"PAR1")))
    else:
        work[:8] = chance.randbytes(8)
    return f"{how} at {place} of {len(content)}", bytes(work)


def changed(chance: Random, content: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """One value somewhere in it replaced, taken away, or joined by an unknown key."""
    whole = json.loads(json.dumps(content))
    at: Any = whole
    path: list[Any] = []
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = chance.choice(keys)
        path.append(key)
        deeper = isinstance(at[key], dict | list) and len(at[key]) > 0
        if not deeper or chance.random() < 0.25:
            break
        at = at[key]
    how = chance.choice(("replace", "replace", "replace", "remove", "add"))
    if how == "replace":
        at[key] = chance.choice(NASTY)
    elif how == "remove":
        del at[key]
    elif isinstance(at, dict):
        at[chance.choice(("sead", "__class__", "../x", ""))] = chance.choice(NASTY)
    return f"{how} {'.'.join(map(str, path))}", whole


def broken_yaml(chance: Random, content: dict[str, Any]) -> tuple[str, bytes]:
    """A YAML file that says something else, or whose text is broken, or that asks for more than values."""
    kind = chance.random()
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    if kind < 0.55:
        how, other = changed(chance, content)
        return how, yaml.safe_dump(other, sort_keys=False, allow_unicode=True).encode()
    if kind < 0.75:
        return broken_bytes(chance, text.encode())
    lines = text.splitlines()
    place = chance.randrange(len(lines))
    extra = chance.choice(
        (
            lines[place], "x: !!python/object/apply:os.system [touch it-ran]", "x: &a [*a]", "? [a]\n: b",
            "- a",
            "x: " + "[" * 2000, "\t", "x: *nothing", "<<: {name: other}", "%YAML 9.9", "---", "x: 0x_", "'",
            "a: &a [1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
            "d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d]",
        )
    )  # fmt: skip
    lines.insert(place if chance.random() < 0.5 else len(lines), extra)
    return f"line {extra[:40]!r}", "\n".join(lines).encode()


# --- a second reader of YAML -----------------------------------------------------------------------


def agrees(read: Any, written: Any) -> bool:
    """Whether every value of the file is what was read of it; what it does not say is not looked at."""
    if isinstance(written, dict):
        return isinstance(read, dict) and all(k in read and agrees(read[k], v) for k, v in written.items())
    if isinstance(written, list):
        return len(read) == len(written) and all(map(agrees, read, written))
    if isinstance(read, bool) or isinstance(written, bool):
        return read is written
    if isinstance(read, float) and isinstance(written, str):
        return math.isclose(read, float(Fraction(written.replace(" ", ""))))
    if isinstance(read, str) or isinstance(written, str):
        return str(read) == str(written)
    return bool(read == written)


def says_what_it_says(model: strict.Strict, file: Path) -> bool:
    """Whether a card, protocol or recipe holds what PyYAML finds in its file."""
    return agrees(model.model_dump(mode="json"), yaml.safe_load(file.read_text(encoding="utf-8")))


# --- cards, protocols, recipes -----------------------------------------------------------------------

OPTIONS = {"num_classes": 10, "input_shape": [1, 8, 8], "width": 4, "blocks": [1], "pool": 2}
CARD = {"name": "m-digits", "family": "softmax", "summary": "s", "data": "digits", "arch": "resnet-softmax"}
PROTOCOL = {
    "name": "p", "version": 1, "summary": "s", "n": 8, "seed": 1, "chunk": 8,
    "data": {"digits": {"eps": {"linf": "8/255", "l2": 0.5}, "foreign": ["inverted"], "sigmas": [0.1]}},
    "evaluations": [
        {"kind": "clean"},
        {"kind": "attack", "attack": "pgd", "norm": "linf", "options": {"steps": 2, "restarts": 1}},
        {"kind": "attack", "attack": "square", "norm": "l2", "eps": [0.25], "options": {"n_queries": 10}},
        {"kind": "corruptions", "types": ["gaussian_noise", "contrast"], "severities": [1, 5]},
        {"kind": "ood", "scores": ["complexity"]},
        {"kind": "fixed", "objective": "energy", "norm": "linf", "steps": 3},
        {"kind": "probes"},
    ],
}  # fmt: skip
RECIPE = {
    "name": "r-digits", "family": "softmax", "data": "digits", "arch": "resnet-softmax",
    "options": {"width": 4},
    "objective": {"kind": "adversarial", "eps": "0.1", "step_size": "1/40", "steps": 3},
    "optimiser": {"lr": 0.001, "weight_decay": 0.01, "warm_up": 10, "clip": 1.0}, "steps": 10, "batch": 8,
    "ema": 0.9, "augment": {"shift": 1, "rotate": 5}, "summary": "s",
}  # fmt: skip


@cache
def weights() -> bytes:
    """The safetensors of an untrained network."""
    from safetensors.torch import save

    return save(build("resnet-softmax", OPTIONS, where="benchmark").state_dict())


def model_folder(folder: Path, content: bytes) -> tuple[Path, dict[str, Any]]:
    """A folder of the zoo with these weights, and what its card is to say."""
    place = folder / "m-digits"
    place.mkdir()
    (place / "weights.safetensors").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    return place, CARD | {"options": OPTIONS, "weights": {"file": "weights.safetensors", "sha256": digest}}


def card(chance: Random, folder: Path) -> Case:
    """A broken card beside sound weights."""
    place, content = model_folder(folder, weights())
    how, text = broken_yaml(chance, content)
    (place / "card.yaml").write_bytes(text)

    def right(model: Any) -> bool:
        found = registry.load_card(place)
        return says_what_it_says(found, place / "card.yaml") and (
            found.weights is None or same_tensors(model, weights())
        )

    return Case(how, lambda: load(place), right)


def protocol(chance: Random, folder: Path) -> Case:
    """A broken protocol, read and planned for digits."""
    how, text = broken_yaml(chance, PROTOCOL)
    file = folder / "p.yaml"
    file.write_bytes(text)

    def read() -> tuple[Protocol, list[str]]:
        found = registry.load_protocol(str(file))
        return found, [e.name for e in plan(found, data.load("digits")).evaluations]

    def right(answer: tuple[Protocol, list[str]]) -> bool:
        plain = all(name == registry.slug(name) and len(name) < 200 for name in answer[1])
        return plain and says_what_it_says(answer[0], file)

    return Case(how, read, right)


def recipe(chance: Random, folder: Path) -> Case:
    """A broken recipe."""
    how, text = broken_yaml(chance, RECIPE)
    file = folder / "recipe.yaml"
    file.write_bytes(text)
    return Case(how, lambda: strict.read(Recipe, file), lambda found: says_what_it_says(found, file))


# --- weights -----------------------------------------------------------------------------------------


def tensors_of(content: bytes) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, by its specification, for the types that are used here."""
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    kinds = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I64": "<i8"}
    found = {}
    for name, entry in header.items():
        start, stop = (8 + length + place for place in entry["data_offsets"])
        found[name] = np.frombuffer(content[start:stop], kinds[entry["dtype"]]).reshape(entry["shape"])
    return found


def same_tensors(model: Any, content: bytes) -> bool:
    """Whether a model's state is what the file says, in float32, and finite."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    said = tensors_of(content)
    return state.keys() == said.keys() and all(
        np.isfinite(state[k]).all() and np.array_equal(state[k], v.astype(state[k].dtype))
        for k, v in said.items()
    )


def safetensors(chance: Random, folder: Path) -> Case:
    """Broken weights whose sha256 the card bears all the same, as that of a hostile author would."""
    from safetensors.numpy import save

    if chance.random() < 0.5:
        how, content = broken_bytes(chance, weights())
    else:
        tensors = {name: value.copy() for name, value in tensors_of(weights()).items()}
        name = chance.choice(sorted(tensors))
        how = chance.choice(("nan", "inf", "shape", "int", "half", "gone", "more", "header"))
        value = tensors[name]
        if how in ("nan", "inf"):
            tensors[name] = np.full_like(value, float(how)) if value.dtype.kind == "f" else value
            how = f"{how} in {name}" if value.dtype.kind == "f" else f"nothing in {name}"
        elif how == "shape":
            tensors[name] = value.reshape(-1, 1)
        elif how in ("int", "half"):
            tensors[name] = value.astype({"int": np.int64, "half": np.float16}[how])
        elif how == "gone":
            del tensors[name]
        elif how == "more":
            tensors["../x"] = value
        content = save(tensors)
        if how == "header":
            content = struct.pack("<Q", chance.choice((0, 2**63, 2**40, 7))) + content[8:]
    place, described = model_folder(folder, content)
    (place / "card.yaml").write_text(yaml.safe_dump(described))
    return Case(how, lambda: load(place), lambda model: same_tensors(model, content))


# --- pictures ----------------------------------------------------------------------------------------


def picture(chance: Random, kind: str, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> bytes:
    """A random picture as a file."""
    file = io.BytesIO()
    depth = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4, "I;16": 2, "1": 1, "P": 1}[mode]
    raw = chance.randbytes(size[0] * size[1] * depth)
    Image.frombytes(mode if mode != "1" else "L", size, raw).convert(mode).save(file, kind)
    return file.getvalue()


def images(chance: Random, folder: Path) -> Case:
    """A folder of pictures, one of which is broken or of another kind."""
    place = folder / "pictures"
    for name in ("a", "b"):
        (place / name).mkdir(parents=True)
        for i in range(2):
            (place / name / f"{i}.png").write_bytes(picture(chance, "PNG"))
    victim = place / chance.choice(("a", "b")) / "0.png"
    how = chance.choice(("bytes", "bytes", "bytes", "mode", "size", "text", "empty class", "bomb"))
    if how == "bytes":
        how, content = broken_bytes(
            chance, picture(chance, chance.choice(("PNG", "JPEG", "GIF", "BMP", "TIFF")))
        )
        victim.write_bytes(content)
    elif how == "mode":
        kind, mode = chance.choice(
            (("PNG", "I;16"), ("PNG", "L"), ("PNG", "RGBA"), ("JPEG", "CMYK"), ("PNG", "1"))
        )
        how, _ = f"mode {mode}", victim.write_bytes(picture(chance, kind, mode))
    elif how == "size":
        victim.write_bytes(picture(chance, "PNG", size=chance.choice(((8, 9), (1, 1), (300, 2)))))
    elif how == "text":
        victim.write_text("no picture")
    elif how == "empty class":
        (place / "c").mkdir()
    else:
        victim.write_bytes(bomb())
    files = sorted(place.glob("*/*.png"))
    return Case(how, lambda: data.load(f"imagefolder:{place}"), lambda found: as_pillow(found, files))


def bomb() -> bytes:
    """The head of a PNG of 60,000 by 60,000 pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    import zlib

    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def as_pillow(found: data.Dataset, files: list[Path]) -> bool:
    """Whether pictures are what Pillow reads, 8 bits a value, and labels the places of their folders."""
    said = []
    for file in files:
        with Image.open(file) as opened:
            if opened.mode.startswith(("I", "F")):
                return False
            said.append(np.asarray(opened.convert("RGB")).transpose(2, 0, 1))
    pixels = (found.images.numpy() * 255).round().astype(np.uint8)
    names = [file.parent.name for file in files]
    labels = [sorted(set(names)).index(name) for name in names]
    return np.array_equal(np.broadcast_to(pixels, np.stack(said).shape), np.stack(said)) and (
        found.labels.tolist() == labels
    )


def npz(chance: Random, folder: Path) -> Case:
    """A broken .npz of pictures and labels."""
    file = folder / "x.npz"
    how = broken_npz(chance, file, "labels", np.arange(4) % 2)

    def right(found: data.Dataset) -> bool:
        with np.load(file, allow_pickle=False) as said:
            return same_pictures(found.images.numpy(), said["images"]) and (
                found.labels.tolist() == said["labels"].tolist()
            )

    return Case(how, lambda: data.load(str(file)), right)


def pictures_from_elsewhere(chance: Random, folder: Path) -> Case:
    """A broken file for ``verify --add``."""
    file = folder / "x.npz"
    how = broken_npz(chance, file, "sample_ids", np.array([3, 1, 0, 7]))

    def right(found: added.Pictures) -> bool:
        with np.load(file, allow_pickle=False) as said:
            ids = said["sample_ids"] if "sample_ids" in said.files else np.arange(len(said["images"]))
            return same_pictures(found.images.numpy(), said["images"]) and found.ids.tolist() == ids.tolist()

    return Case(how, lambda: added.read(file, data.load("digits")), right)


def same_pictures(read: np.ndarray, said: np.ndarray) -> bool:
    """Whether pictures are those that an array says, and within [0, 1]."""
    said = said.astype(np.float64) / (255 if said.dtype == np.uint8 else 1)
    said = said[:, None] if said.ndim == 3 else said
    said = said if said.shape == read.shape else said.transpose(0, 3, 1, 2)
    return bool((read >= 0).all() and (read <= 1).all()) and np.allclose(read, said, atol=1e-6)


def broken_npz(chance: Random, file: Path, beside: str, numbers: np.ndarray) -> str:
    """Write an .npz of 4 pictures and ``numbers`` that is broken, and say how."""
    pictures: Any = np.random.default_rng(chance.randrange(2**32)).random((4, 1, 8, 8)).astype(np.float32)
    how = chance.choice(
        (
            "bytes",
            "bytes",
            "bytes",
            "dtype",
            "shape",
            "nan",
            "range",
            "objects",
            "numbers",
            "gone",
            "order",
            "bomb",
        )
    )
    content: dict[str, Any] = {"images": pictures, beside: numbers}
    if how == "dtype":
        kind = chance.choice(("f2", ">f4", "f8", "i8", "bool", "c8", "S3", "u1", "u2", "M8[s]"))
        content["images"], how = pictures.astype(kind), f"dtype {kind}"
    elif how == "shape":
        shape = chance.choice(
            ((4, 64), (256,), (0, 1, 8, 8), (4, 0, 8, 8), (2, 2, 8, 8), (4, 8, 8), (1, 4, 8, 8))
        )
        content["images"] = pictures.ravel()[: math.prod(shape)].reshape(shape)
    elif how in ("nan", "range"):
        pictures[2, 0, 3, 3] = {"nan": chance.choice((np.nan, np.inf)), "range": chance.choice((-1, 2, 255))}[
            how
        ]
    elif how == "objects":
        content[chance.choice(list(content))] = np.array([print, {}, None, 1], dtype=object)
    elif how == "numbers":
        content[beside] = chance.choice(
            (numbers * 0.5, numbers - 1, numbers[:3], numbers[:, None], numbers * 10**12, numbers.astype("U"))
        )
    elif how == "gone":
        del content[chance.choice(list(content))]
    elif how == "order":
        content["images"] = np.asfortranarray(pictures)
    elif how == "bomb":
        content["images"] = np.broadcast_to(np.float32(0), (4, 1, 2048, 2048))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **content)
    if how != "bytes":
        file.write_bytes(buffer.getvalue())
        return how
    how, broken = broken_bytes(chance, buffer.getvalue())
    file.write_bytes(broken)
    return how


KINDS: dict[str, Callable[[Random, Path], Case]] = {
    "card": card,
    "protocol": protocol,
    "recipe": recipe,
    "weights": safetensors,
    "images": images,
    "npz": npz,
    "added": pictures_from_elsewhere,
}
