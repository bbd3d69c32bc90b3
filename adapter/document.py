"""YAML as people write settings in it: each value with its place, and `${VARIABLES}` expanded."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from adapter.exceptions import ConfigException

_VARIABLE = re.compile(r"\$(?P<escaped>\$)?\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\})?")


@dataclass(frozen=True)
class Marked:
    """A value and where it stands; a mapping and a list hold marked values.

    `text` is a scalar as it came from the environment, where nobody can tell the number 5 from the text "5".
    """

    value: Any
    source: str
    text: str | None = None

    @property
    def plain(self) -> Any:
        """The value without marks, two levels deep: no setting is deeper, and aliases can make it endless."""
        if isinstance(self.value, list):
            return [item.scalar for item in self.value]
        if isinstance(self.value, dict):
            return {key: item.scalar for key, item in self.value.items()}
        return self.value

    @property
    def scalar(self) -> Any:
        return ... if isinstance(self.value, (list, dict)) else self.value


def parse(text: str, source: str, environ: Mapping[str, str]) -> Marked | None:
    """Read a document, None where it is empty; `source` is the file's name, to which the lines are added.

    Raises ConfigException with a sentence that names the place.
    """
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            return None if node is None else _Document(loader, environ, source).marked(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark is not None else source
        problem = " ".join(str(getattr(error, "problem", None) or getattr(error, "reason", None) or error).split())
        line = text.splitlines()[mark.line : mark.line + 1] if mark is not None else []
        hint = ": a `${…}` between braces needs quotes" if "${" in "".join(line) else ""
        raise ConfigException(f"{where} is not valid YAML: {problem}{hint}.") from error
    except (ValueError, OverflowError) as error:  # a date or a number that only looks like one
        raise ConfigException(f"{source} has a value that cannot be read: {reprlib.repr(str(error))}.") from error
    except RecursionError as error:
        raise ConfigException(f"{source} is nested too deeply.") from error


def parse_value(text: str, source: str) -> Marked:
    """Read one value of the environment: quoted, a list in brackets, or a bare text that may be meant as a number."""
    if text[:1] in ("'", '"', "["):
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigException(f"{source} has a value that cannot be read: write a text, or [a, list].") from error
        return Marked([Marked(item, source) for item in value] if isinstance(value, list) else value, source)
    return Marked(_resolved(yaml.SafeLoader(""), text), source, text)


class _Document:
    """Turns the nodes of one document into marked values."""

    def __init__(self, loader: yaml.SafeLoader, environ: Mapping[str, str], source: str) -> None:
        self._loader = loader
        self._environ = environ
        self._source = source
        self._done: dict[int, Marked] = {}  # an alias is its anchor's node again
        self._open: set[int] = set()

    def marked(self, node: yaml.Node) -> Marked:
        if id(node) in self._open:
            raise ConfigException(f"{self._where(node)} contains itself.")
        if id(node) not in self._done:
            self._open.add(id(node))
            self._done[id(node)] = self._marked(node)
            self._open.remove(id(node))
        return self._done[id(node)]

    def _marked(self, node: yaml.Node) -> Marked:
        where = self._where(node)
        if isinstance(node, yaml.SequenceNode):
            return Marked([self.marked(item) for item in node.value], where)
        if isinstance(node, yaml.MappingNode):
            return Marked(self._mapping(node), where)
        if "${" in node.value:
            return self._with_variables(node.value, where)
        return Marked(self._loader.construct_object(node, deep=True), where)

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Marked]:
        seen: set[str] = set()
        for key in self._keys(node):
            if key.value in seen:
                raise ConfigException(f"{self._where(key)} has the key {reprlib.repr(key.value)} for a second time.")
            seen.add(key.value)
        self._loader.flatten_mapping(node)  # resolves `<<: *other`
        keys = self._keys(node)
        return {key.value: self.marked(value) for key, (_, value) in zip(keys, node.value, strict=True)}

    def _keys(self, node: yaml.MappingNode) -> list[yaml.ScalarNode]:
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigException(f"{self._where(key)} has a key that is not a text.")
        return [key for key, _ in node.value]

    def _with_variables(self, text: str, where: str) -> Marked:
        used: list[str] = []
        text = _VARIABLE.sub(lambda match: self._expanded(match, where, used), text)
        return Marked(_resolved(self._loader, text), f"{where} with {', '.join(used)}" if used else where, text)

    def _expanded(self, match: re.Match[str], where: str, used: list[str]) -> str:
        name, default = match["name"], match["default"]
        if match["escaped"]:
            return match[0][1:]
        if name is None:
            raise ConfigException(
                f"{where} has a `${{` that begins no variable: write ${{NAME}} or ${{NAME:-default}}."
            )
        value = self._environ.get(name, "")
        if value or (name in self._environ and default is None):
            used.append(name)
            return value
        if default is None:
            raise ConfigException(f"{where} names the variable {name}, which is not set: set it, or write a default.")
        return str(default)

    def _where(self, node: yaml.Node) -> str:
        return f"{self._source}:{node.start_mark.line + 1}"


def _resolved(loader: yaml.SafeLoader, text: str) -> Any:
    """What a bare text stands for in YAML."""
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]  # PyYAML's
    try:
        return loader.construct_object(yaml.ScalarNode(tag, text))
    except (yaml.YAMLError, ValueError, OverflowError):  # it only looks like a date or a number
        return text
