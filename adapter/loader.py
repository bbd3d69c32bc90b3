"""From "module:attribute" to a Service; the only place that imports user code."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from adapter.exceptions import AdapterError, ImportServiceError, sentence
from adapter.services import Service


def load_service(target: str, working_dir: str | os.PathLike[str] | None = None) -> Service:
    """Import a service by `module:attribute`, `file.py:attribute`, or `module` / `file.py` with one Service in it.

    `working_dir` becomes the working directory, where another is given, and the first place that modules are looked
    for. Raises ImportServiceError with a sentence that names what is missing.
    """
    if not isinstance(target, str):
        raise ImportServiceError(f"A service is named by a text such as 'service:svc', not by {target!r}.")
    folder = Path(working_dir or ".").expanduser().resolve()
    if not folder.is_dir():
        raise ImportServiceError(f"The working directory {str(working_dir)!r} does not exist.")
    os.chdir(folder)
    look_first_in(folder)
    place, _, attribute = target.partition(":")
    module = load_module(place, target)
    service = _attribute(module, attribute, target) if attribute else _only_service(module, target)
    service.working_dir = str(folder)
    service.import_string = f"{module.__name__}:{attribute or _name_of(service, module)}"
    return service


def load_module(place: str, target: str) -> ModuleType:
    """Import the user's module that is named by `place`, a dotted name or a file; `target` is what the person said."""
    if not place:
        raise ImportServiceError(f"{target!r} names no module: write for example 'service:svc' or 'service.py:svc'.")
    name = _module_name(place, target)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ImportServiceError(
                f"There is no module {name!r} in {os.getcwd()!r} or on Python's path: check the name "
                "and the working directory."
            ) from error
        raise ImportServiceError(f"{place!r} imports {error.name!r}, which is not installed.") from error
    except AdapterError:
        raise
    except (Exception, SystemExit) as error:  # whatever a person's module raises
        raise ImportServiceError(f"{place!r} cannot be imported: {sentence(error)} ({_where(error)}).") from error
    file = getattr(module, "__file__", None)
    if place.endswith(".py") and (file is None or not Path(place).samefile(file)):
        raise ImportServiceError(
            f"{place!r} cannot be imported, since the module {name!r} is {file or 'built in'}: give the file another "
            "name."
        )
    return module


def _module_name(place: str, target: str) -> str:
    if not place.endswith(".py"):
        return place
    path = Path(place).resolve()
    if not path.is_file():
        raise ImportServiceError(f"There is no file {place!r} in {os.getcwd()!r} ({target!r}).")
    root, parts = path.parent, [path.stem]
    while (root / "__init__.py").is_file():  # a module of a package, which may import its siblings relatively
        root, parts = root.parent, [root.name, *parts]
    look_first_in(root)
    return ".".join(parts)


def look_first_in(folder: Path) -> None:
    """Let modules be looked for in this folder before any other."""
    with contextlib.suppress(ValueError):
        sys.path.remove(str(folder))
    sys.path.insert(0, str(folder))


def _where(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    trace = error.__traceback__
    place = "line unknown"
    while trace is not None:
        place = f"{trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _attribute(module: ModuleType, attribute: str, target: str) -> Service:
    found: object = module
    for name in attribute.split("."):
        found = getattr(found, name, None)
    if isinstance(found, Service):
        return found
    names = [n for n, v in vars(module).items() if isinstance(v, Service)]
    hint = f"it has {', '.join(names)}" if names else "it has no Service at all"
    if found is None:
        raise ImportServiceError(f"{module.__name__!r} has no {attribute!r} ({target!r}); {hint}.")
    raise ImportServiceError(f"{target!r} is not an adapter.Service but a {type(found).__name__}; {hint}.")


def _only_service(module: ModuleType, target: str) -> Service:
    every = list(dict.fromkeys(v for v in vars(module).values() if isinstance(v, Service)))
    used = {id(other) for service in every for other in service.uses}
    found = [service for service in every if id(service) not in used]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ImportServiceError(f"{target!r} has no adapter.Service: write `svc = adapter.Service(…)` in it.")
    names = [n for n, v in vars(module).items() if v in found]
    raise ImportServiceError(f"{target!r} has several services: say which, as in '{target}:{names[0]}'.")


def _name_of(service: Service, module: ModuleType) -> str:
    return next(name for name, value in vars(module).items() if value is service)
