"""Safe YAML for cards, protocols and recipes: plain values of JSON's kinds, and nothing that runs.

Refused are tags, by which a file could ask for a Python object; a key that occurs twice, of which one would
be lost silently; dates; and aliases that expand to more than any such file holds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from robustgen.errors import UserError

MAX_BYTES = 1_000_000
MAX_NODES = 20_000
"""Values and keys after expanding aliases; the largest file of this project has a few hundred."""
REMEDY = "correct this line; 'robustgen show NAME' prints a valid file"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses tags and duplicate keys and reads dates as text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own name, a table that is only read)
        first: [(tag, shape) for tag, shape in pairs if tag != "tag:yaml.org,2002:timestamp"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(
                problem=f"tags such as {event.tag} are not read", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be plain text", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} occurs here twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises UserError if it cannot be read or parsed."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            "cannot read the file",
            where=path,
            expected="a text file in UTF-8",
            got=error,
            remedy="check the path",
        ) from None
    if len(content) > MAX_BYTES:
        raise _wrong(path, f"at most {MAX_BYTES:,} bytes", "more")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None and (size := _size(node, {})) > MAX_NODES:
            raise _wrong(path, f"at most {MAX_NODES:,} values, aliases expanded", f"{size:,}")
        return None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise _wrong(f"{path}{line}", "plain YAML: keys, lists, numbers and text", problem) from None
    except ValueError as error:  # an invalid number, such as 0x_
        raise _wrong(path, "numbers that can be read", error) from None
    except RecursionError:
        raise _wrong(path, "values a few levels deep", "endless nesting") from None


def _wrong(where: object, expected: str, got: object) -> UserError:
    return UserError("this is not valid YAML", where=where, expected=expected, got=got, remedy=REMEDY)


def _size(node: Node, known: dict[int, int | None]) -> int:
    """The number of nodes after expanding all aliases. Raises RecursionError if a node contains itself."""
    if isinstance(node, ScalarNode):
        return 1
    if id(node) in known:
        size = known[id(node)]
        if size is None:  # it is still being counted, so it contains itself
            raise RecursionError
        return size
    known[id(node)] = None
    parts = [part for pair in node.value for part in pair] if isinstance(node, MappingNode) else node.value
    size = known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return size
