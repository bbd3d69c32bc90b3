"""From the name of a module to the service that is written in it."""

from __future__ import annotations

import inspect
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from adapter.endpoint.service import Service, stores_assets, volume_environment
from adapter.exceptions import AdapterError, ImportServiceError, sentence
from adapter.loader import load_module, look_first_in

logger = logging.getLogger("adapter.endpoint")

NEEDED, NOT_NEEDED = 10, 11  # exit codes of `store-assets --check-is-needed`
_CHECK = "import sys; from adapter.endpoint.loading import check; check(*sys.argv[1:])"


def load_service(module_name: str, class_name: str | None = None) -> Service:
    """Make the service of a module: of the class named, else of its one subclass of `Service`.

    A class that is written there counts before those that it imports.

    ImportServiceError with one sentence where there is none. Source: seed 004.
    """
    look_first_in(Path.cwd())
    module = load_module(module_name, module_name)
    cls = _only_class(module) if class_name is None else getattr(module, class_name, None)
    if not (inspect.isclass(cls) and issubclass(cls, Service)):
        raise ImportServiceError(
            f"The module {module_name!r} has no class {class_name!r} that extends adapter.endpoint.Service."
        )
    if inspect.isabstract(cls):
        raise ImportServiceError(f"{cls.__name__} has no infer() method; the service of an endpoint has one.")
    logger.info("Using service in %s.%s.", module_name, cls.__name__)
    try:
        return cls()
    except AdapterError:
        raise
    except Exception as error:  # the edge to user code
        raise ImportServiceError(
            f"{cls.__name__}() of the module {module_name!r} failed: {sentence(error)}."
        ) from error


def _only_class(module: ModuleType) -> type[Service]:
    known = dict.fromkeys(
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Service) and value is not Service
    )
    candidates = [cls for cls in known if cls.__module__ == module.__name__] or list(known)
    found = [cls for cls in candidates if not any(cls in other.__mro__[1:] for other in candidates)]
    if not found:
        raise ImportServiceError(
            f"The module {module.__name__!r} has no class that extends adapter.endpoint.Service: write one with an "
            "infer() method."
        )
    if len(found) > 1:
        names = ", ".join(cls.__name__ for cls in found)
        raise ImportServiceError(
            f"The module {module.__name__!r} has several services ({names}): say which with --service-class."
        )
    return found[0]


def is_store_assets_needed(module_name: str, class_name: str | None = None) -> bool:
    """Whether the service of a module has assets to store: it overrides `store_assets`.

    It is asked in a process of its own, since libraries read the variables of the volume when they are imported.
    ImportServiceError where that process cannot make the service.
    """
    named = [module_name, *([class_name] if class_name is not None else [])]
    done = subprocess.run(
        [sys.executable, "-c", _CHECK, *named], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode in (NEEDED, NOT_NEEDED):
        return done.returncode == NEEDED
    said = done.stderr.strip().splitlines()
    raise ImportServiceError(
        said[-1] if said else f"Importing {module_name!r} ended the process with {done.returncode}."
    )


def check(module_name: str, class_name: str | None = None) -> None:
    """End this process with what `store-assets --check-is-needed` says of a service."""
    try:
        service = load_service(module_name, class_name)
    except ImportServiceError as error:
        sys.exit(str(error))
    sys.exit(NEEDED if stores_assets(service) else NOT_NEEDED)


def maybe_set_volume_environment_variables(module_name: str, class_name: str | None = None) -> None:
    """Let libraries keep what they download in the volume, where the service stores assets; ask before its import."""
    if is_store_assets_needed(module_name, class_name):
        os.environ.update(volume_environment(os.environ))
