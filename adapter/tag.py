"""Tags: `name:version`, the names of services, runners and saved models."""

from __future__ import annotations

import base64
import logging
import re
import uuid
from dataclasses import dataclass
from functools import total_ordering

from adapter.exceptions import InvalidArgument

logger = logging.getLogger(__name__)

LATEST = "latest"
_PART = re.compile(r"[a-z0-9]([-._a-z0-9]*[a-z0-9])?")
_MAX_PART = 63


def valid_name(text: str, what: str = "name") -> str:
    """Return `text` in lower case, or raise InvalidArgument where it cannot be part of a tag.

    A part has 1 to 63 characters: lower-case letters, digits, `-`, `.` and `_`, with a letter or digit at both ends.
    """
    if not isinstance(text, str):
        raise InvalidArgument(f"A {what} is a string, not {text!r}.")
    lowered = text.lower()
    if lowered != text:
        logger.warning("The %s %r is written in lower case: %r.", what, text, lowered)
    if len(lowered) > _MAX_PART or not _PART.fullmatch(lowered):
        raise InvalidArgument(
            f"{text!r} cannot be a {what}: use 1 to {_MAX_PART} letters, digits, '-', '.' or '_', "
            "beginning and ending with a letter or a digit."
        )
    return lowered


@total_ordering
@dataclass(frozen=True)
class Tag:
    """The name of a saved model with its version; `version` is None where any (the latest) is meant.

    >>> Tag.parse("iris_clf:latest")
    Tag(name='iris_clf', version='latest')
    """

    name: str
    version: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", valid_name(self.name, "model name"))
        if self.version is not None:
            object.__setattr__(self, "version", valid_name(self.version, "version"))

    @classmethod
    def parse(cls, text: str | Tag) -> Tag:
        """Read `name` or `name:version`; a Tag is returned as it is."""
        if isinstance(text, Tag):
            return text
        if not isinstance(text, str):
            raise InvalidArgument(f"A tag is a string such as 'iris_clf:latest', not {text!r}.")
        name, colon, version = text.strip().partition(":")
        if colon and not version:
            raise InvalidArgument(f"The tag {text!r} ends with ':': write '{name}' or '{name}:<version>'.")
        return cls(name, version or None)

    def with_new_version(self) -> Tag:
        """The same name with a fresh version: 16 characters, from the time and this machine, never twice the same."""
        raw = uuid.uuid1().bytes
        return Tag(self.name, base64.b32encode(raw).decode().rstrip("=").lower()[:16])

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Tag):
            return NotImplemented
        # a name alone comes before its versions; None itself has no order
        return (self.name, self.version or "") < (other.name, other.version or "")

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}:{self.version}"
