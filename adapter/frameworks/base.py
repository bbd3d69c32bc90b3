"""What every framework does alike: saving models, loading them, making Runnables and Runners of them."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata as distributions
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from adapter import models
from adapter.exceptions import InvalidArgument, MissingDependencyException, NotFound, StateException
from adapter.model import Model, ModelInfo, Parameter, Signature
from adapter.runnable import Runnable, mark
from adapter.runner import Runner
from adapter.tag import Tag
from adapter.tensor import TensorSpec

logger = logging.getLogger(__name__)

Tensors = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]
_PROBED_ROWS = 2


class Framework:
    """Saves and runs the models of one library. To add a framework, write one file in this folder:

    - subclass Framework, set `name` (the file's name), `libraries` (import name -> name of the distribution) and, where
      they differ from `predict`, `default_signatures`;
    - write `save` (the model into a folder) and `load` (back again); the library is imported inside functions only,
      since fronts call `get` and `to_runner` without having it;
    - where needed write `check` (refuse what is no such model), `call` (how a method is called) and `tensors` (what is
      known of its arguments and results);
    - end the file as `sklearn.py` ends, so that `adapter.<name>.save_model` and its like are functions of the module.
    """

    name: ClassVar[str]
    libraries: ClassVar[Mapping[str, str]]
    default_signatures: ClassVar[Mapping[str, Mapping[str, Any]]] = {"predict": {"batchable": False}}
    options: ClassVar[tuple[str, ...]] = ("partial_kwargs",)
    load_options: ClassVar[tuple[str, ...]] = ()
    supported_resources: ClassVar[tuple[str, ...]] = ("cpu",)
    supports_cpu_multi_threading: ClassVar[bool] = False

    # ---- to override ----------------------------------------------------------------------------------------------

    def save(self, model: Any, folder: Path) -> Mapping[str, Any] | None:
        """Write the model into the folder; what it returns, if anything, is recorded among the options."""
        raise NotImplementedError

    def load(self, folder: Path, info: ModelInfo, **options: Any) -> Any:
        """Read the model back; `options` are those of `load_options` that the caller gave."""
        raise NotImplementedError

    def check(self, model: Any) -> None:
        """Raise InvalidArgument where `model` is not what this framework saves; by default everything is."""

    def call(self, native: Any, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call a method of the loaded model."""
        return getattr(native, method)(*args, **kwargs)

    def tensors(self, native: Any, method: str, sample: Any) -> Tensors | None:
        """The inputs and outputs of a method, None where they cannot be told; `sample` is one input, or None."""
        return None

    # ---- written once ---------------------------------------------------------------------------------------------

    @property
    def module(self) -> str:
        """The module that people know the framework by, and that `model.yaml` names."""
        return f"adapter.{self.name}"

    def save_model(
        self,
        name: str | Tag,
        model: Any,
        *,
        signatures: Mapping[str, Signature | Mapping[str, Any]] | None = None,
        labels: Mapping[str, Any] | None = None,
        custom_objects: Mapping[str, Any] | None = None,
        external_modules: Iterable[ModuleType] | None = None,
        metadata: Mapping[str, Any] | None = None,
        sample: Any = None,
        **options: Any,
    ) -> Model:
        """Save a model in the model store under a new version, or under that of a `name:version`.

        `signatures` maps the methods that will be served to how they are called: `{"predict": {"batchable": True,
        "batch_dim": 0}}`, with `input_spec` and `output_spec` where you know better than what is found out here, for
        which `sample`, a few rows of the input, helps. Where none are given, the framework's usual method is served;
        `{}` saves a model that is loaded but not served. `labels` are text, `metadata` plain values;
        `custom_objects` are pickled beside the model and come back as `model.custom_objects`; classes of
        `external_modules` are pickled by value. `partial_kwargs={"predict": {…}}` are keyword arguments for each call.

        Raises InvalidArgument for what is no model of this framework or lacks a method of the signatures, AlreadyExists
        where the version is taken. Source: seed 003, "Pre-built Model Runners".
        """
        self._refuse_unknown("save_model", options, self.options)
        with self._library(f"the model {name}"):
            self.check(model)
            complete = self._signatures(model, signatures, sample)
            with models.create(
                name,
                module=self.module,
                signatures=complete,
                labels=labels,
                options=options,
                custom_objects=custom_objects,
                external_modules=external_modules,
                metadata=metadata,
                context={"framework_name": self.name, "framework_versions": self._versions()},
            ) as draft:
                found = self.save(model, draft.folder)
                if found:
                    draft.info = dataclasses.replace(draft.info, options={**draft.info.options, **found})
        return draft

    def load_model(self, model: str | Tag | Model, **options: Any) -> Any:
        """Return the native object of a saved model, by tag or from `get`."""
        self._refuse_unknown("load_model", options, self.load_options)
        found = self.get(model)
        with self._library(f"the model {found.tag}"):
            return self.load(found.folder, found.info, **options)

    def get(self, tag: str | Tag | Model) -> Model:
        """Return a saved model without loading it; NotFound where there is none, or it is of another framework."""
        found = tag if isinstance(tag, Model) else models.get(tag)
        if found.info.module != self.module:
            by = found.info.module or "adapter.models.create"
            use = found.info.module or "adapter.models"
            raise NotFound(
                f"The model {found.tag} was saved with {by}, not {self.module}: use `{use}.get('{found.tag}')`."
            )
        return found

    def inspected(self, model: Model) -> ModelInfo:
        """Return the record of a model with what loading and trying it tells of its methods."""
        native = self.load_model(model)
        return dataclasses.replace(model.info, signatures=self._signatures(native, model.info.signatures, None))

    def get_runnable(self, model: Model) -> type[Runnable]:
        """Make a Runnable class of a saved model: it loads the model, and its methods are the saved signatures."""
        framework, info = self, self.get(model).info
        if not info.signatures:
            raise InvalidArgument(f"The model {info.tag} was saved without signatures, so it has no method to serve.")
        partial: Mapping[str, Mapping[str, Any]] = info.options.get("partial_kwargs") or {}

        def init(runnable: Any) -> None:
            runnable.model = framework.load_model(model)

        def served(method: str, more: Mapping[str, Any]) -> Callable[..., Any]:
            def function(self: Any, *args: Any, **kwargs: Any) -> Any:
                return framework.call(self.model, method, args, {**more, **kwargs})

            function.__name__ = method
            return function

        members: dict[str, Any] = {
            "__init__": init,
            "__module__": self.module,
            "__doc__": f"Serves the model {info.tag}.",
            "SUPPORTED_RESOURCES": self.supported_resources,
            "SUPPORTS_CPU_MULTI_THREADING": self.supports_cpu_multi_threading,
        }
        for method, signature in info.signatures.items():
            members[method] = mark(served(method, partial.get(method) or {}), signature)
        return type(str(info.tag), (Runnable,), members)

    def to_runner(self, model: str | Tag | Model, name: str = "", **options: Any) -> Runner:
        """Make a Runner of a saved model, named after it; `options` are those of `adapter.Runner`."""
        found = self.get(model)
        options["models"] = [found, *(options.get("models") or ())]
        return Runner(self.get_runnable(found), name=name or found.tag.name, model=found, **options)

    def _signatures(
        self, model: Any, given: Mapping[str, Signature | Mapping[str, Any]] | None, sample: Any
    ) -> dict[str, Signature]:
        """The signatures with all that is known of the model's methods, the framework's own where none are given."""
        if given is None:
            given = self.default_signatures
            for method in given:
                if _method(model, method) is None:
                    instead = "save a function or another callable, " if method == "__call__" else ""
                    raise InvalidArgument(
                        f"This {type(model).__name__} has no {method!r}, which is served where no method is named: "
                        f"name another with signatures={{'<method>': {{}}}} (it has {_public_methods(model)}), "
                        f"{instead}or give signatures={{}} to save a model that is loaded but not served."
                    )
        if not isinstance(given, Mapping):
            raise InvalidArgument(
                f"signatures is a mapping such as {{'predict': {{'batchable': True}}}}, not {given!r}."
            )
        return {method: self._signature(model, method, Signature.of(spec), sample) for method, spec in given.items()}

    def _signature(self, model: Any, method: str, given: Signature, sample: Any) -> Signature:
        bound = _method(model, method)
        if bound is None:
            raise InvalidArgument(
                f"The signatures name the method {method!r}, which this {type(model).__name__} does not have; "
                f"it has {_public_methods(model)}."
            )
        parameters = given.parameters or Parameter.all_of(bound)
        inputs, outputs = _named(given.inputs, parameters) if given.inputs else None, given.outputs
        if inputs is None or outputs is None:
            if sample is None and inputs is not None and len(inputs) == 1:
                sample = np.zeros([_PROBED_ROWS if n < 0 else n for n in inputs[0].shape], inputs[0].dtype)
            found = self.tensors(model, method, sample)
            if found is not None and not _fits(found, given):
                found = None
            if found is not None:
                inputs, outputs = inputs or found[0], outputs or found[1]
        return dataclasses.replace(given, inputs=inputs, outputs=outputs, parameters=parameters)

    def _versions(self) -> dict[str, str]:
        found = {}
        for distribution in self.libraries.values():
            with contextlib.suppress(distributions.PackageNotFoundError):
                found[distribution] = distributions.version(distribution)
        return found

    def _refuse_unknown(self, function: str, given: Iterable[str], known: tuple[str, ...]) -> None:
        for option in given:
            if option not in known:
                raise InvalidArgument(
                    f"{self.module}.{function} has no option {option!r}; it has {', '.join(known) or 'none'}."
                )

    @contextlib.contextmanager
    def _library(self, subject: str) -> Iterator[None]:
        """Say what to install where the framework's library, or another that a pickle names, is missing."""
        try:
            yield
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing in self.libraries:
                raise MissingDependencyException(self.libraries[missing], extra=self.name) from error
            raise StateException(
                f"{subject[:1].upper()}{subject[1:]} needs the module {error.name!r}, which cannot be imported here: "
                f"install it, or save the model with `external_modules=[{missing}]`, which takes its code along."
            ) from error


def _method(model: Any, name: str) -> Callable[..., Any] | None:
    """A method of a model that can be served, None where it has none of that name."""
    bound = model if name == "__call__" and callable(model) else getattr(model, name, None)
    return bound if callable(bound) and (name == "__call__" or not name.startswith("__")) else None


def _public_methods(model: Any) -> str:
    # asked of the class first: on the object a property could run anything
    public = (n for n in dir(type(model)) if not n.startswith("_") and callable(getattr(type(model), n, None)))
    return ", ".join(n for n in public if hasattr(model, n)) or "none"


def _named(specs: tuple[TensorSpec, ...], parameters: tuple[Parameter, ...] | None) -> tuple[TensorSpec, ...]:
    """Inputs without a name named after the parameters of the method."""
    taken = {s.name for s in specs}
    free = iter(p.name for p in parameters or () if not p.kind.startswith("VAR_") and p.name not in taken)
    return tuple(s if s.name else dataclasses.replace(s, name=next(free, f"input_{i}")) for i, s in enumerate(specs))


def _fits(found: Tensors, signature: Signature) -> bool:
    """Whether the batch axes of the signature are of any length in the tensors that were found."""
    if not signature.batchable:
        return True
    return all(
        axis < len(spec.shape) and spec.shape[axis] == -1
        for specs, axis in zip(found, signature.batch_dim, strict=True)
        for spec in specs
    )
