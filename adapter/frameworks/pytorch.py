"""`adapter.pytorch`: modules of PyTorch, run eagerly, and what every file for models that torch runs builds on."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import cloudpickle
import numpy as np

from adapter.exceptions import InvalidArgument, sentence
from adapter.frameworks.base import Framework, described
from adapter.frameworks.trial import Tensors, Trial, numbers
from adapter.model import Model, ModelInfo

FILE = "saved_model.pt"
_EMBEDDINGS = ("Embedding", "EmbeddingBag")


class PyTorch(Framework):
    """A call runs in inference mode, with the module in its eval mode, on the GPU of the worker if it has one.

    Where the signature tells the tensors (from `sample=`, or `input_spec` and `output_spec`), arrays of those types
    come and go, and a caller needs no torch. Where it does not, arrays and data frames become tensors of the module's
    floating-point type, tensors keep theirs, and what the module returns comes back as it is: tensors, on the CPU.
    Integers stay integers in a module that has an embedding.
    """

    name = "pytorch"
    libraries = {"torch": "torch"}  # noqa: RUF012  # declared ClassVar in Framework
    extra = "torch"
    default_signatures = {"__call__": {"batchable": False}}  # noqa: RUF012
    load_options: ClassVar[tuple[str, ...]] = ("device_id",)
    supported_resources = ("nvidia.com/gpu", "cpu")
    supports_cpu_multi_threading = True

    def check(self, model: Any) -> None:
        import torch

        if isinstance(model, torch.jit.ScriptModule):
            raise InvalidArgument("This module is TorchScript: save it with adapter.torchscript.")
        if not isinstance(model, torch.nn.Module):
            raise InvalidArgument(f"adapter.pytorch saves a torch.nn.Module, not {described(model)}.")

    def save(self, model: Any, folder: Path, **options: Any) -> Mapping[str, Any] | None:
        import torch

        try:
            torch.save(model, folder / FILE, pickle_module=cloudpickle)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise InvalidArgument(
                f"This {type(model).__name__} cannot be pickled ({error}): keep open files, locks and the like out of "
                "its attributes."
            ) from error
        except RuntimeError as error:
            raise InvalidArgument(
                f"PyTorch cannot save this {type(model).__name__} ({sentence(error)}): where parts of it are "
                "parametrized, torch.nn.utils.parametrize.remove_parametrizations writes their values into them."
            ) from error
        return None

    def load(self, folder: Path, info: ModelInfo, **options: Any) -> Any:
        import torch

        file, device = folder / FILE, options.get("device_id", "cpu")
        return torch.load(file, map_location=device, weights_only=False).eval()

    def start(self, model: Model) -> Served:
        return self.served(self.load_model(model, device_id=device()), model)

    def served(self, module: Any, model: Model) -> Served:
        """A module as a saved model says that it is called."""
        return Served.of(module, (name for name, signature in model.info.signatures.items() if signature.typed))

    def function(self, model: Any, method: str) -> Callable[..., Any] | None:
        # a module's own __call__ says (*args, **kwargs)
        return super().function(model, "forward" if method == "__call__" else method)

    def call(self, native: Any, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        import torch

        served = native if isinstance(native, Served) else Served.of(native)
        as_tensor = served.exactly if method in served.exact else served.freely
        with torch.inference_mode():
            given = mapped(args, as_tensor), mapped(dict(kwargs), as_tensor)
            result = getattr(served.module, method)(*given[0], **given[1])
        return mapped(result, array) if method in served.exact else result

    def tensors(self, native: Any, method: str, trial: Trial) -> Tensors | None:
        import torch

        if trial.sample is None:
            return None
        served = Served.of(native, [method])

        def as_trained(value: Any) -> Any:
            if numbers(value) is None and not isinstance(value, torch.Tensor):
                return value
            tensor = torch.as_tensor(value)
            return array(tensor.to(served.floating) if tensor.is_floating_point() else tensor)

        sample = numbers(trial.sample) if isinstance(trial.sample, list) else trial.sample
        with evaluated(native):
            tried = trial.on(mapped(sample, as_trained))
            return tried.tensors(lambda args, kwargs: self.call(served, method, args, kwargs))


@dataclass(frozen=True)
class Served:
    """A module, and how arrays become its tensors.

    `exact` are the methods whose data types the signature tells, `integers` says whether integers stay integers where
    it does not.
    """

    module: Any
    exact: frozenset[str]
    device: Any
    floating: Any
    integers: bool

    @classmethod
    def of(cls, module: Any, exact: Iterable[str] = ()) -> Served:
        import torch

        tensors = [*module.parameters(), *module.buffers()]
        place = tensors[0].device if tensors else device()
        floating = next((t.dtype for t in tensors if t.is_floating_point()), torch.get_default_dtype())
        parts = {getattr(part, "original_name", type(part).__name__) for part in module.modules()}
        return cls(module, frozenset(exact), place, floating, not parts.isdisjoint(_EMBEDDINGS))

    def exactly(self, value: Any) -> Any:
        """An array as a tensor of its own data type, or of one that arrays do not have."""
        import torch

        tensor = tensor_of(value, self.device)
        wider = self.floating == torch.bfloat16 and tensor.is_floating_point()
        return tensor.to(self.floating) if wider else tensor

    def freely(self, value: Any) -> Any:
        """An array as a tensor of the module's data type, a tensor as it is."""
        import torch

        tensor = tensor_of(value, self.device)
        if isinstance(value, torch.Tensor) or (self.integers and not tensor.is_floating_point()):
            return tensor
        return tensor.to(self.floating)


def tensor_of(value: Any, place: Any) -> Any:
    import torch

    try:
        return torch.as_tensor(value, device=place)
    except TypeError as error:
        kind = getattr(value, "dtype", type(value).__name__)
        raise InvalidArgument(f"PyTorch takes arrays of numbers, not of {kind}.") from error


def device() -> str:
    """The device of this process: its one GPU where it has one, as the instances of a runner on GPUs do."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def array(tensor: Any) -> Any:
    """A tensor as an array; a data type that numpy lacks (bfloat16) as float32."""
    plain = tensor.detach().cpu()
    return (plain.float() if str(plain.dtype) == "torch.bfloat16" else plain).numpy()


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """A value with each array, data frame and tensor in it changed."""
    import torch

    if isinstance(value, (torch.Tensor, np.ndarray)):
        return change(value)
    if hasattr(value, "to_numpy"):
        return change(value.to_numpy())
    if type(value) in (list, tuple):
        return type(value)(mapped(item, change) for item in value)
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    return value


@contextlib.contextmanager
def evaluated(module: Any) -> Iterator[None]:
    """Put a module in eval mode for a while; each of its parts is then as it was."""
    # one that torch.jit.freeze made has no mode any more
    before = [(part, part.training) for part in module.modules() if hasattr(part, "training")]
    module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


framework = PyTorch()
save_model = framework.save_model
load_model = framework.load_model
get = framework.get
get_runnable = framework.get_runnable
to_runner = framework.to_runner
