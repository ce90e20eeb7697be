"""Read YAML that a person wrote: one value per key, and nothing that grows, nests or hides beyond what one would write.

PyYAML itself takes the last of two equal keys in silence, follows aliases of aliases until memory is full, and ends
deep nesting in a traceback of thousands of lines. Here each of these is one sentence with its line.
"""

import math
import re
from collections.abc import Iterator
from typing import Any, cast

import yaml

from lib.errors import ConfigError

BYTES = 1_000_000
"""Largest experiment file; the shipped ones have less than 10 kB."""
DEPTH = 30
"""Most brackets and sections inside one another."""
VALUES = 50_000
"""Most values of a file, those of an alias counted every time it is used."""

NO_KEYS = {"bool": "true or false", "null": "nothing", "timestamp": "a date", "binary": "bytes"}
"""What YAML makes of words such as no, on and ~, and what is never meant where a key stands."""


def parse(text: str) -> Any:
    """Return the value of a YAML text. Raises ConfigError in one sentence that names the line."""
    try:
        return _copied(yaml.load(text, _Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        hint = "; indent with spaces, YAML takes no tabs" if "'\\t'" in (error.problem or "") else ""
        raise ConfigError(f"{place}{error.problem or error.context}{hint}") from error
    except (yaml.YAMLError, ValueError) as error:  # a character that cannot be, a date or a number out of range
        raise ConfigError(" ".join(str(error).split())) from error


def unusable_values(value: Any, where: str = "") -> Iterator[str]:
    """Yield one sentence per value in nested mappings and lists that nothing can use.

    Such are numbers that are NaN or infinite, and texts that no file can have as its name or its content.
    """
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{where}: expected a finite number, got {value}"
    if isinstance(value, str) and ("\0" in value or re.search("[\ud800-\udfff]", value)):
        yield f"{where}: expected text without the characters \\0 and \\ud800 to \\udfff, got {value!r}"
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in below:
        yield from unusable_values(part, f"{where}.{key}" if where else str(key))


def _copied(value: Any) -> Any:
    """Return nested mappings and lists of which none stands in two places, as one does that an alias names."""
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    return [_copied(part) for part in value] if isinstance(value, list) else value


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with limits on depth and size, and with equal keys refused."""

    def __init__(self, text: str):
        super().__init__(text)
        self.depth = 0
        self.sizes: dict[int, int] = {}  # id of a node -> its values, aliases expanded

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node and count what is in it."""
        event = self.peek_event()
        mark, is_alias = event.start_mark, isinstance(event, yaml.AliasEvent)
        if self.depth == DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested more than {DEPTH} deep", problem_mark=mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node is None or id(node) in self.sizes:
            return node
        if is_alias:  # of a node that is still being read
            raise yaml.MarkedYAMLError(problem="an alias stands inside of what it names", problem_mark=mark)
        size = 1 if isinstance(node, yaml.ScalarNode) else 1 + sum(self.sizes[id(part)] for part in _parts(node))
        if size > VALUES:
            problem = f"more than {VALUES:,} values, each alias (*name) counted with all it stands for"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        self.sizes[id(node)] = size
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Construct the value of a node; PyYAML leaves what a wrong tag (``!!bool x``) ends in to its caller."""
        try:
            return super().construct_object(node, deep)
        except (AttributeError, KeyError, IndexError) as error:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            problem = f"{node.value!r} is no value of the kind {tag}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from error

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping in which no key stands twice."""
        lines: dict[Any, int] = {}
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key_node, yaml.ScalarNode):
                if kind := NO_KEYS.get(key_node.tag.removeprefix("tag:yaml.org,2002:")):
                    problem = f"expected a name as the key, got {key_node.value!r}, which YAML reads as {kind}"
                    raise yaml.MarkedYAMLError(problem=f"{problem}; put it in quotes", problem_mark=key_node.start_mark)
                key, line = (key_node.tag, key_node.value), key_node.start_mark.line + 1
                if key in lines:
                    problem = f"the key {key_node.value} stands twice in one section, first in line {lines[key]}"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
                lines[key] = line
        return super().construct_mapping(cast(yaml.MappingNode, node), deep)  # which refuses any other node


def _parts(node: yaml.Node) -> Iterator[yaml.Node]:
    """Yield the nodes directly inside a sequence or a mapping, keys too."""
    for part in node.value:
        yield from part if isinstance(part, tuple) else (part,)
