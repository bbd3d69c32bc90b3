"""The saved models that code can name: `get`, `list`, `create`, `delete`, `export_model` and `import_model`.

Models are saved in the store on disk, `$ADAPTER_HOME/models`. Where there is none (a worker inside Triton, a front
that only has a manifest), `use_source` makes `get` and `list` answer from elsewhere; this file therefore travels inside
every entry, and needs no more than numpy and cloudpickle.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import cloudpickle

from adapter import __version__
from adapter.exceptions import InvalidArgument, sentence
from adapter.model import Model, ModelInfo, Signature, plain
from adapter.tag import Tag

if TYPE_CHECKING:
    from adapter.store import ModelStore, NewModel

DEFAULT_HOME = "~/.adapter"


class ModelSource(Protocol):
    """Where `get` and `list` find models: the store, an entry of a model repository, a manifest."""

    def get(self, tag: Tag) -> Model:
        """The model of a tag (no version or `latest` means the newest); NotFound where there is none."""

    def list(self, name: str | None = None) -> builtins.list[Model]:
        """All versions of all models, or of one, newest first; empty where there is none."""


_source: ModelSource | None = None


def use_source(source: ModelSource | None) -> None:
    """Let `get` and `list` answer from `source` in this process; None means the store again."""
    global _source
    _source = source


def source() -> ModelSource:
    """What `get` and `list` answer from now."""
    return store() if _source is None else _source


def store() -> ModelStore:
    """The store on disk: `models` in `$ADAPTER_HOME`, which is read at each call."""
    # only here: adapter.store needs PyYAML and file locks, which an entry inside Triton does without
    from adapter.store import ModelStore

    return ModelStore(Path(os.environ.get("ADAPTER_HOME") or DEFAULT_HOME).expanduser() / "models")


def get(tag: str | Tag) -> Model:
    """Return a saved model by `name`, `name:latest`, `name:<version>` or the beginning of one version.

    Raises NotFound where there is none, and InvalidArgument where several versions begin so.
    """
    return source().get(Tag.parse(tag))


def list(tag: str | Tag | None = None) -> builtins.list[Model]:  # noqa: A001  # `adapter.models.list` is the public name
    """Return all saved models, or all versions of one name, newest first; NotFound where the name is unknown."""
    if tag is None:
        return source().list()
    wanted = Tag.parse(tag)
    if wanted.version is not None:
        return [source().get(wanted)]
    return source().list(wanted.name) or [source().get(wanted)]


@contextlib.contextmanager
def create(
    name: str | Tag,
    *,
    module: str = "",
    api_version: str = "v1",
    signatures: Mapping[str, Signature | Mapping[str, Any]] | None = None,
    labels: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    external_modules: Iterable[ModuleType] | None = None,
    metadata: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] | None = None,
) -> Iterator[NewModel]:
    """Save a model whose files the `with` block writes: into the folder `path`, or to `path_of("file")`.

    It is saved when the block ends well, and nothing is left of it otherwise. `name` may hold a version, which must not
    exist yet (AlreadyExists); without one a new version is made. `custom_objects` are pickled beside it; classes and
    functions of `external_modules` are pickled by value there and by cloudpickle inside the block, so that loading the
    model does not need these modules. `metadata` and `options` hold plain values; numpy's become such.

    >>> with adapter.models.create("rules", labels={"team": "risk"}) as model:
    ...     Path(model.path_of("rules.txt")).write_text("x > 3")
    """
    given = Tag.parse(name)
    for what, value in (("labels", labels), ("custom_objects", custom_objects)):
        if value is not None and not isinstance(value, Mapping):
            raise InvalidArgument(f"{what} is a mapping from names to values, not {value!r}.")
    info = ModelInfo(
        tag=given if given.version else given.with_new_version(),
        module=module,
        labels={str(key): str(value) for key, value in (labels or {}).items()},
        options=plain(options or {}, "options"),
        metadata=plain(metadata or {}, "metadata"),
        context={
            **plain(context or {}, "context"),
            "adapter_version": __version__,
            "python_version": platform.python_version(),
        },
        signatures={method: Signature.of(spec) for method, spec in (signatures or {}).items()},
        api_version=api_version,
    )
    with store().create(info) as model, _by_value(external_modules or ()):
        if custom_objects:
            try:
                pickled = cloudpickle.dumps(dict(custom_objects))
            except Exception as error:  # a class of the user's own may raise anything
                raise InvalidArgument(f"The custom_objects cannot be pickled ({sentence(error)}).") from error
            Path(model.path_of(Model.CUSTOM_OBJECTS)).write_bytes(pickled)
        yield model


def delete(tag: str | Tag) -> builtins.list[Tag]:
    """Delete a version of a model, or with a name alone all of them; returns the tags that are gone."""
    return store().delete(Tag.parse(tag))


def export_model(tag: str | Tag, path: str | os.PathLike[str] | None = None, output_format: str | None = None) -> str:
    """Write a saved model to one file, `<name>-<version>.adaptermodel` here or in a folder `path`; return where it is.

    `output_format`, or else the end of the file's name, tells the format: `adaptermodel`, `tar`, `gz`, `xz`, `bz2`,
    `zip` or `folder`. Raises AlreadyExists where there is something already.
    """
    # only here, as in `store`
    from adapter.archive import export

    return str(export(get(tag), path, output_format))


def import_model(path: str | os.PathLike[str]) -> Model:
    """Save a model that `export_model` wrote, or BentoML 1.x (a .bentomodel file, or the folder of one version).

    A file of a model is as trusted as code: loading it runs what is in it, and a BentoML model is loaded here once, to
    learn its tensors. Raises InvalidArgument where it is none, AlreadyExists where this version is saved already.
    """
    # only here, as in `store`
    from adapter.archive import take_in

    return take_in(store(), path)


@contextlib.contextmanager
def _by_value(modules: Iterable[ModuleType]) -> Iterator[None]:
    """Let cloudpickle write the code of these modules into a pickle instead of their names."""
    added: builtins.list[ModuleType] = []
    try:
        for module in modules:
            if not isinstance(module, ModuleType):
                raise InvalidArgument(f"external_modules=[…] holds imported modules, not {module!r}.")
            if module.__name__ not in cloudpickle.list_registry_pickle_by_value():
                cloudpickle.register_pickle_by_value(module)
                added.append(module)
        yield
    finally:
        for module in added:
            cloudpickle.unregister_pickle_by_value(module)
