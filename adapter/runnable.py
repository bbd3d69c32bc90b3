"""Runnables: classes whose marked methods are served, each on processes of its own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar, overload

from adapter.exceptions import InvalidArgument
from adapter.model import Signature

F = TypeVar("F", bound=Callable[..., Any])
_MARK = "__adapter_signature__"


class Runnable:
    """A unit of serving logic: subclass it, load in `__init__`, mark what is served with `@Runnable.method`.

    >>> class Doubler(Runnable):
    ...     @Runnable.method(batchable=True)
    ...     def double(self, x):
    ...         return 2 * x

    `SUPPORTED_RESOURCES` and `SUPPORTS_CPU_MULTI_THREADING` tell how many processes the class is spread over; the
    spellings `SUPPORT_NVIDIA_GPU` and `SUPPORT_CPU_MULTI_THREADING` of seed 003 mean the same.
    """

    SUPPORTED_RESOURCES: ClassVar[tuple[str, ...]] = ("cpu",)
    SUPPORTS_CPU_MULTI_THREADING: ClassVar[bool] = False

    @overload
    @staticmethod
    def method(meth: F) -> F: ...

    @overload
    @staticmethod
    def method(
        meth: None = None,
        *,
        batchable: bool = False,
        batch_dim: int | tuple[int, int] = 0,
        input_spec: Any = None,
        output_spec: Any = None,
    ) -> Callable[[F], F]: ...

    @staticmethod
    def method(
        meth: F | None = None,
        *,
        batchable: bool = False,
        batch_dim: int | tuple[int, int] = 0,
        input_spec: Any = None,
        output_spec: Any = None,
    ) -> F | Callable[[F], F]:
        """Serve this method, usable bare or with arguments.

        A batchable method takes arrays, lists or data frames with a batch axis, and what callers sent at the same time
        may reach it joined along `batch_dim` (one axis, or a pair for inputs and outputs); what it returns has as many
        items as came. `input_spec` and `output_spec` (adapter.TensorSpec, a `(dtype, shape)` pair, a sample array, or
        lists or mappings of them) let the call travel as typed tensors; without them it travels as one blob.
        """
        signature = Signature.of(
            {"batchable": batchable, "batch_dim": batch_dim, "input_spec": input_spec, "output_spec": output_spec}
        )

        def decorate(function: F) -> F:
            if not inspect.isfunction(function):
                raise InvalidArgument(f"@Runnable.method marks a function of the class body, not {function!r}.")
            return mark(function, signature)

        return decorate if meth is None else decorate(meth)

    @classmethod
    def add_method(
        cls,
        method: Callable[..., Any],
        name: str,
        *,
        batchable: bool = False,
        batch_dim: int | tuple[int, int] = 0,
        input_spec: Any = None,
        output_spec: Any = None,
    ) -> None:
        """Give this class one more served method; its parents keep what they have."""

        def function(self: Any, *args: Any, **kwargs: Any) -> Any:
            return method(self, *args, **kwargs)

        # its annotations are read where `method` was written, and so is its source
        functools.update_wrapper(function, method)
        function.__name__ = name
        decorate = Runnable.method(
            batchable=batchable, batch_dim=batch_dim, input_spec=input_spec, output_spec=output_spec
        )
        setattr(cls, name, decorate(function))


def mark(function: F, signature: Signature) -> F:
    """Let a function be served as a method of the class that it is set on."""
    setattr(function, _MARK, signature)
    return function


def signatures(cls: type[Runnable]) -> Mapping[str, Signature]:
    """The served methods of a Runnable class, inherited ones first, in the order of their definition."""
    found: dict[str, Signature] = {}
    for parent in reversed(cls.__mro__):
        for name, value in vars(parent).items():
            signature = getattr(value, _MARK, None)
            if isinstance(signature, Signature):
                found[name] = signature
            elif name in found:
                del found[name]  # a subclass hides the method with something that is not served
    return found


def supports_gpu(cls: type[Runnable]) -> bool:
    return bool(getattr(cls, "SUPPORT_NVIDIA_GPU", False)) or "nvidia.com/gpu" in cls.SUPPORTED_RESOURCES


def supports_threads(cls: type[Runnable]) -> bool:
    return bool(getattr(cls, "SUPPORT_CPU_MULTI_THREADING", cls.SUPPORTS_CPU_MULTI_THREADING))
