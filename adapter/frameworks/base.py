"""What every framework does alike: saving models, loading them, making Runnables and Runners of them."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata as distributions
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from adapter import models, payload
from adapter.exceptions import (
    AdapterError,
    InvalidArgument,
    MissingDependencyException,
    NotFound,
    PayloadTypeError,
    StateException,
    sentence,
)
from adapter.frameworks.sample import thinned
from adapter.frameworks.trial import Tensors, Trial, positional
from adapter.model import Model, ModelInfo, Parameter, Signature
from adapter.requirements import is_installed, own_modules, pickled_modules, versions_of
from adapter.runnable import Runnable, mark
from adapter.runner import Runner
from adapter.tag import Tag
from adapter.tensor import TensorSpec

logger = logging.getLogger(__name__)

_PROBED_ROWS = 2


class Framework:
    """Saves and runs the models of one library. To add a framework, write one file in this folder:

    - subclass Framework, set `name` (the file's name), `libraries` (import name -> name of the distribution to install)
      and, where they differ from `predict`, `default_signatures`;
    - write `save` (the model into a folder) and `load` (back again); the library is imported inside functions only,
      since fronts call `get` and `to_runner` without having it;
    - where needed write `check` (refuse what is no such model), `call` (how a method is called) and `tensors` (a sample
      that can be made of the model itself, and what cannot be typed);
    - more seldom `start` (what a worker holds), `function` (whose parameters a call has), `usual_signatures` (where
      they depend on the model), `modules` (more of what it needs), and `described_when_loaded = True` where the served
      methods are those of what `load` returns and not of what is saved;
    - name the keywords of `save_model` that go to `save` in `save_options`, those that are recorded, and that
      `with_options` changes, in `options`, and those of `load_model` in `load_options`;
    - end the file as `sklearn.py` ends, so that `adapter.<name>.save_model` and its like are functions of the module;
    - add a line to the table in `adapter/__init__.py`, an extra to `pyproject.toml` (`extra` names it where it is not
      called as the framework), a line to `MODULES` in `migration.py` where BentoML's files are read as they are, a row
      to `docs/frameworks.md`, and take its name out of `absent.py`.

    `tests/frameworks/test_picklable_model.py` adds one in this way.
    """

    name: ClassVar[str]
    libraries: ClassVar[Mapping[str, str]]
    extra: ClassVar[str] = ""  # the extra of pyproject.toml that installs them, where it is not called as the framework
    default_signatures: ClassVar[Mapping[str, Mapping[str, Any]]] = {"predict": {"batchable": False}}
    described_when_loaded: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ("partial_kwargs",)
    save_options: ClassVar[tuple[str, ...]] = ()
    load_options: ClassVar[tuple[str, ...]] = ()
    supported_resources: ClassVar[tuple[str, ...]] = ("cpu",)
    supports_cpu_multi_threading: ClassVar[bool] = False

    # ---- to override ----------------------------------------------------------------------------------------------

    def save(self, model: Any, folder: Path, **options: Any) -> Mapping[str, Any] | None:
        """Write the model into the folder; what it returns, if anything, is recorded among the options.

        `options` are those of `save_options` that the caller gave.
        """
        raise NotImplementedError

    def load(self, folder: Path, info: ModelInfo, **options: Any) -> Any:
        """Read the model back; `options` are those of `load_options` that the caller gave."""
        raise NotImplementedError

    def check(self, model: Any) -> None:
        """Raise InvalidArgument where `model` is not what this framework saves; by default everything is."""

    def start(self, model: Model) -> Any:
        """Load a saved model to be served: what `call` gets as `native`."""
        return self.load_model(model)

    def function(self, model: Any, method: str) -> Callable[..., Any] | None:
        """The function behind a method, whose parameters are those of a call; None where the model has none."""
        return _method(model, method)

    def usual_signatures(self, model: Any) -> Mapping[str, Mapping[str, Any]]:
        """What is served where nobody says."""
        return self.default_signatures

    def call(self, native: Any, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call a method of the loaded model; what has a position among its parameters comes in `args`."""
        return getattr(native, method)(*args, **kwargs)

    def tensors(self, native: Any, method: str, trial: Trial) -> Tensors | None:
        """The inputs and outputs of a method, None where they cannot be told: then a call travels as a blob.

        By default, what a call on the sample tells. `trial.on(sample)` tries it on a sample that you make.
        """
        return trial.tensors(lambda args, kwargs: self.call(native, method, args, kwargs))

    def modules(self, model: Any) -> set[str]:
        """The modules that serving the model imports, by their first name: `libraries`, and those of its classes."""
        return {*self.libraries, *_modules_of(model)}

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
        "batch_dim": 0}}`, with `input_spec` and `output_spec` where you know better than what is found out here. Where
        none are given, the framework's usual method is served; `{}` saves a model that is loaded but not served.

        `sample` is some rows of the input (a tuple for several arguments, a mapping for named ones) on which each
        method is tried, so that its arguments and results travel as tensors of their data types and shapes, with any
        number of rows. It is kept beside the model, as `model.sample`: of a large one 1,000 rows, with the least and
        the greatest value of each column.

        `labels` are text, `metadata` plain values; `custom_objects` are pickled beside the model and come back as
        `model.custom_objects`; classes of `external_modules` are pickled by value.
        `partial_kwargs={"predict": {…}}` are keyword arguments for each call.

        Raises InvalidArgument for what is no model of this framework or lacks a method of the signatures, AlreadyExists
        where the version is taken. Source: seed 003, "Pre-built Model Runners".
        """
        self._refuse_unknown("save_model", options, (*self.options, *self.save_options))
        recorded = {name: value for name, value in options.items() if name in self.options}
        with self._library(f"the model {name}"):
            self.check(model)
            described = {} if self.described_when_loaded else self._signatures(model, signatures, sample, recorded)
            with models.create(
                name,
                module=self.module,
                signatures=described,
                labels=labels,
                options=recorded,
                custom_objects=custom_objects,
                external_modules=external_modules,
                metadata=metadata,
                context={"framework_name": self.name},
            ) as draft:
                found = self.save(model, draft.folder, **{n: v for n, v in options.items() if n not in recorded})
                info = dataclasses.replace(draft.info, options={**draft.info.options, **(found or {})})
                if self.described_when_loaded:
                    native = self.load(draft.folder, info)
                    info = dataclasses.replace(info, signatures=self._signatures(native, signatures, sample, recorded))
                versions = versions_of({*self.modules(model), *_modules_of(sample), *pickled_modules(draft.folder)})
                draft.info = dataclasses.replace(info, context={**info.context, "framework_versions": versions})
                _keep(sample, draft.folder)
                own = sorted(own_modules(draft.folder))
        if own:
            logger.warning(
                "The model %s has classes or functions of %s, and loads only where that can be imported: save it with "
                "external_modules=[%s], which takes the code along.",
                draft.tag,
                *[", ".join(own)] * 2,
            )
        return draft

    def load_model(self, model: str | Tag | Model, **options: Any) -> Any:
        """Return the native object of a saved model, by tag or from `get`.

        Logs a warning where a library has another major version than it was saved with, or Python another minor one.
        Raises StateException where its files cannot be read.
        """
        self._refuse_unknown("load_model", options, self.load_options)
        found = self.get(model)
        self._compare_versions(found.info)
        with self._library(f"the model {found.tag}"):
            try:
                return self.load(found.folder, found.info, **options)
            except (AdapterError, ModuleNotFoundError):
                raise
            except Exception as error:  # whatever a library, or a class in a pickle, raises
                raise StateException(
                    f"The model {found.tag} cannot be loaded from {found.folder} ({sentence(error)}): its files may be "
                    "damaged, or need other versions than are installed here."
                ) from error

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
        signatures = self._signatures(native, model.info.signatures, model.sample, model.info.options)
        return dataclasses.replace(model.info, signatures=signatures)

    def get_runnable(self, model: Model) -> type[Runnable]:
        """Make a Runnable class of a saved model: it loads the model, and its methods are the saved signatures."""
        framework, info = self, self.get(model).info
        if not info.signatures:
            raise InvalidArgument(f"The model {info.tag} was saved without signatures, so it has no method to serve.")
        partial = _partial_kwargs(info.options, info.signatures)

        def init(runnable: Any) -> None:
            runnable.model = framework.start(model)

        def served(method: str, signature: Signature, more: Mapping[str, Any]) -> Callable[..., Any]:
            def function(self: Any, *args: Any, **kwargs: Any) -> Any:
                given, rest = positional(signature.parameters, args, kwargs)
                return framework.call(self.model, method, given, {**more, **rest})

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
            members[method] = mark(served(method, signature, partial.get(method, {})), signature)
        return type(str(info.tag), (Runnable,), members)

    def to_runner(self, model: str | Tag | Model, name: str = "", **options: Any) -> Runner:
        """Make a Runner of a saved model, named after it; `options` are those of `adapter.Runner`."""
        found = self.get(model)
        options["models"] = [found, *(options.get("models") or ())]
        return Runner(self.get_runnable(found), name=name or found.tag.name, model=found, **options)

    def _signatures(
        self,
        model: Any,
        given: Mapping[str, Signature | Mapping[str, Any]] | None,
        sample: Any,
        options: Mapping[str, Any],
    ) -> dict[str, Signature]:
        """The signatures with all that is known of the model's methods, the framework's own where none are given."""
        if given is None:
            given = self.usual_signatures(model)
            for method in given:
                if self.function(model, method) is None:
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
        partial = _partial_kwargs(options, given)
        return {
            method: self._signature(model, method, Signature.of(spec), sample, partial.get(method, {}))
            for method, spec in given.items()
        }

    def _signature(
        self, model: Any, method: str, given: Signature, sample: Any, partial: Mapping[str, Any]
    ) -> Signature:
        function = self.function(model, method)
        if function is None:
            raise InvalidArgument(
                f"The signatures name the method {method!r}, which this {type(model).__name__} does not have; "
                f"it has {_public_methods(model)}."
            )
        parameters = given.parameters or Parameter.all_of(function)
        inputs, outputs = _named(given.inputs, parameters) if given.inputs else None, given.outputs
        if inputs is None or outputs is None:
            if sample is None and inputs is not None:
                zeros = {s.name: np.zeros([_PROBED_ROWS if n < 0 else n for n in s.shape], s.dtype) for s in inputs}
                sample = zeros if len(zeros) > 1 else next(iter(zeros.values()))
            axes = given.batch_dim if given.batchable else (0, 0)
            subject = f"{type(model).__name__}.{method}"
            trial = Trial(subject, sample, parameters, axes, given.batchable, partial)
            found = self.tensors(model, method, trial)
            if found is not None and _fits(found, given):
                inputs, outputs = inputs or found[0], outputs or found[1]
        return dataclasses.replace(given, inputs=inputs, outputs=outputs, parameters=parameters)

    def _compare_versions(self, info: ModelInfo) -> None:
        """Log what is of another major version here than where the model was saved."""
        differing = []
        for name, then in (info.context.get("framework_versions") or {}).items():
            now = self._installed(name)
            if now is not None and _major(now) != _major(str(then)):
                differing.append(f"{name} {then} (here it is {now})")
        then, now = str(info.context.get("python_version") or ""), platform.python_version()
        if then and then.split(".")[:2] != now.split(".")[:2]:
            differing.append(f"Python {then} (here it is {now})")
        if differing:
            logger.warning(
                "The model %s was saved with %s: it may fail to load or give other results, so install what it was "
                "saved with, or save it again with what is here.",
                info.tag,
                " and ".join(differing),
            )

    def _installed(self, name: str) -> str | None:
        """The version of a distribution, or of another one of the same library (xgboost for xgboost-cpu)."""
        for candidate in (name, *(d for d in self.libraries.values() if name.startswith(d))):
            with contextlib.suppress(distributions.PackageNotFoundError):
                return distributions.version(candidate)
        return None

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
                raise MissingDependencyException(
                    self.libraries[missing], extra=self.extra or self.name, feature=self.module
                ) from error
            raise StateException(
                f"{subject[:1].upper()}{subject[1:]} needs the module {error.name!r}, which cannot be imported here: "
                f"install it, or save the model with `external_modules=[{missing}]`, which takes its code along."
            ) from error


def gpu_visible() -> bool:
    """Whether this process is meant to use a GPU: that of a worker on one has `CUDA_VISIBLE_DEVICES` set to it."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "") not in ("", "-1")


def threads() -> int | None:
    """How many threads a library may use in this process, which a worker is told; None: what the library likes."""
    number = os.environ.get("ADAPTER_NUM_THREAD", "")
    return int(number) if number.isdecimal() else None


def in_stub() -> bool:
    """Whether this process is Triton's stub, where the code of a runner runs that is not isolated."""
    return "ADAPTER_IN_STUB" in os.environ


def described(model: Any) -> str:
    """What was given in place of a model, for messages."""
    return f"the class {model.__name__} itself" if isinstance(model, type) else f"a {type(model).__name__}"


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


def _modules_of(value: Any) -> set[str]:
    """The first names of the modules that the classes of a value come from."""
    found = {cls.__module__.partition(".")[0] for cls in type(value).__mro__}
    return {name for name in found if is_installed(name)}


def _keep(sample: Any, folder: Path) -> None:
    """Write the sample beside the model, where it is of a kind that can travel at all."""
    if sample is not None:
        with contextlib.suppress(PayloadTypeError):
            (folder / Model.SAMPLE).write_bytes(payload.encode(thinned(sample)))


def _partial_kwargs(options: Mapping[str, Any], methods: Iterable[str]) -> Mapping[str, Mapping[str, Any]]:
    """The option `partial_kwargs`, which names served methods only."""
    found, known = options.get("partial_kwargs") or {}, list(methods)
    if not isinstance(found, Mapping) or not all(isinstance(each, Mapping) for each in found.values()):
        raise InvalidArgument(
            f"partial_kwargs is a mapping such as {{'predict': {{'output_margin': True}}}}, not {found!r}."
        )
    for method in found:
        if method not in known:
            raise InvalidArgument(
                f"partial_kwargs names the method {method!r}, which is not served; served are "
                f"{', '.join(known) or 'none'}."
            )
    return found


def _major(version: str) -> str:
    """The part of a version that changes with what callers notice: of 0.x, that is x."""
    first, _, rest = version.partition(".")
    return f"0.{rest.partition('.')[0]}" if first == "0" else first
