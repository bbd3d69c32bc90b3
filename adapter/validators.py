"""What annotations of a class-based service say beside the type: `Annotated[np.ndarray, Shape((2, 2))]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from adapter.exceptions import InvalidArgument


@dataclass(frozen=True)
class Shape:
    """The shape of an array; -1 stands for any length. An array of as many items is reshaped, any other refused."""

    dimensions: tuple[int, ...]

    def __init__(self, dimensions: Sequence[int]) -> None:
        if not isinstance(dimensions, (tuple, list)) or not all(
            type(length) is int and length >= -1 for length in dimensions
        ):
            raise InvalidArgument(f"A Shape is a tuple of lengths such as (2, 2) or (-1, 4), not {dimensions!r}.")
        object.__setattr__(self, "dimensions", tuple(dimensions))


@dataclass(frozen=True)
class DType:
    """The data type of an array, as numpy names it: values are cast where none of them changes beyond rounding."""

    dtype: str


@dataclass(frozen=True)
class ContentType:
    """The content type of a file, an image, a text or a stream: of an upload it is demanded, an answer gets it."""

    content_type: str

    def __post_init__(self) -> None:
        name, slash, kind = str(self.content_type).partition("/")
        if not (name and slash and kind):
            raise InvalidArgument(f"A ContentType is written like 'image/png', not {self.content_type!r}.")


@dataclass(frozen=True)
class DataframeSchema:
    """The layout of a data frame in JSON, and the names of the columns that it must have."""

    orient: Literal["records", "columns"] = "records"
    columns: tuple[str, ...] | None = None

    def __init__(self, orient: Literal["records", "columns"] = "records", columns: Sequence[str] | None = None) -> None:
        if orient not in ("records", "columns"):
            raise InvalidArgument(f"The orient of a DataframeSchema is 'records' or 'columns', not {orient!r}.")
        object.__setattr__(self, "orient", orient)
        object.__setattr__(self, "columns", None if columns is None else tuple(columns))
