"""The levels of the package and the rooms of third parties, read from the imports of every file."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import adapter

PACKAGE = Path(adapter.__file__).parent
FILES = {
    ".".join(p.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__").removesuffix("__init__"): p
    for p in sorted(PACKAGE.rglob("*.py"))
}

# the first that a file's name begins with counts; `__init__` of the package is lazy and stands apart
LEVELS = [
    (6, ("endpoint.compute", "endpoint.server")),
    (0, ("triton.address",)),  # it is a setting, too
    (
        0,
        (
            "absent",
            "allocator",
            "exceptions",
            "mailbox",
            "tag",
            "tensor",
            "kinds",
            "document",
            "settings",
            "layers",
            "validators",
        ),
    ),
    (1, ("payload", "model", "models", "requirements", "store", "archive", "migration")),
    (1, ("ledger", "worker_metrics", "measured", "metrics")),
    (2, ("resources", "runnable", "strategy", "method", "invocation", "streaming", "warmup", "runner", "frameworks")),
    (2, ("dependency", "hosted")),
    (3, ("context", "io")),
    (4, ("services", "classes", "life", "loader", "tuning", "endpoint")),
    (5, ("triton",)),
    (6, ("server", "client", "testing")),
    (7, ("cli", "__main__", "pytest_plugin")),
]
# what goes into Triton's stub and the worker must not need what these machines may not have
TRAVELLING = {
    *("triton.backend", "triton.instance", "triton.worker_process", "triton.dlpack", "triton.channel", "triton.spec"),
    *("triton.streams", "triton.stream_worker"),
    *("triton.in_stub", "triton.worker", "triton.worker_log", "triton.stub_metrics", "triton.stub_memory"),
    "triton.trial",
}

# third party -> where it may be imported
ROOMS = {
    "numpy": ("",),
    "chevron": ("endpoint.documenter",),
    "httpcore": ("endpoint.fetching",),
    "cloudpickle": ("model", "models", "frameworks", "triton.export", "triton.pickler", "endpoint.compute"),
    "yaml": ("store", "archive", "document", "cli"),
    "a2wsgi": ("services",),
    "starlette": ("context", "io", "services", "classes", "endpoint", "server", "client", "testing"),
    "pandas": ("payload", "method", "frameworks", "io"),
    "pyarrow": ("io.parquet",),
    "PIL": ("payload", "io", "endpoint.types"),
    "pydantic": ("payload", "io", "classes", "endpoint", "server"),
    "pydantic_core": ("io", "server"),
    "python_multipart": ("io",),
    "orjson": ("io", "server"),
    "typing_extensions": ("",),  # named for type checkers only
    "tritonclient": ("triton",),
    "triton_python_backend_utils": ("triton.backend",),
    "fsspec": ("triton.storage",),
    "grpc": ("triton",),
    "hpack": ("triton.rpc",),
    "google": ("triton", "frameworks.onnx"),
    "prometheus_client": ("metrics", "server"),
    "opentelemetry": ("server.tracing",),
    "fastapi": ("endpoint", "server"),
    "uvicorn": ("endpoint.server", "server", "testing"),
    "watchfiles": ("server",),
    "httpx": ("server", "client", "testing"),
    "pytest": ("pytest_plugin",),
    "anyio": ("io", "server", "client"),
    "click": ("cli",),
    "torch": (
        "payload",
        "triton.exporters.pytorch",
        *(f"frameworks.{name}" for name in ("pytorch", "torchscript", "transformers", "diffusers", "fastai")),
    ),
    "sklearn": ("frameworks.sklearn",),
    "joblib": ("frameworks.sklearn",),
    "xgboost": ("frameworks.xgboost",),
    "lightgbm": ("frameworks.lightgbm",),
    "catboost": ("frameworks.catboost",),
    "onnx": ("frameworks.onnx", "triton.exporters.graph"),
    "onnxruntime": ("frameworks.onnx", "triton.exporters.onnxruntime"),
    "openvino": ("triton.exporters.openvino",),
    "skl2onnx": ("triton.exporters.graph",),
    "treelite": ("triton.exporters.fil",),
    "tensorflow": ("frameworks.tensorflow",),
    "keras": ("frameworks.keras",),
    "transformers": ("frameworks.transformers",),
    "diffusers": ("frameworks.diffusers",),
    "flax": ("frameworks.flax",),
    "jax": ("frameworks.flax",),
    "fastai": ("frameworks.fastai",),
    "mlflow": ("frameworks.mlflow",),
    "easyocr": ("frameworks.easyocr",),
}
# files that import the libraries of saved models, each inside functions
CONVERSIONS = ("frameworks.", "triton.exporters.")
OPTIONAL = {name for name, rooms in ROOMS.items() if rooms != ("",) and all(r.startswith(CONVERSIONS) for r in rooms)}

# imports inside functions: of the user's optional library, of values that are at hand only then, and of what a worker
# does without
INSIDE = {
    ("models", "adapter.archive"),
    ("models", "adapter.store"),
    ("payload", "pandas"),
    ("payload", "PIL"),
    ("payload", "torch"),
    ("payload", "pydantic"),
    ("method", "pandas"),
    ("io.parquet", "pyarrow"),
    ("triton.storage", "fsspec"),
    ("triton.backend", "adapter.triton.in_stub"),
}
# what a Service offers of the levels above it, made by them when it is asked for
UPWARD = {
    ("services", "adapter.server.app"),
    ("services", "adapter.server.openapi"),
    ("endpoint.server", "adapter.cli.server"),  # python -m adapter.endpoint.server
}


def in_room(module: str, room: str) -> bool:
    return not room or module == room or module.startswith(f"{room}.")


def level(module: str) -> int:
    return next(n for n, rooms in LEVELS if any(in_room(module, room) for room in rooms))


def imports(module: str) -> Iterator[tuple[str, bool, bool]]:
    """What a file imports (`adapter.x` or a third party's name), whether in a function, whether for types only."""

    def walk(node: ast.AST, inside: bool, types_only: bool) -> Iterator[tuple[str, bool, bool]]:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            types_only = True
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            inside = True
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            base = node.module or ""
            # `from adapter import models` imports a module, `from adapter.model import Model` does not
            own = base.partition(".")[0] == "adapter"
            names = [f"{base}.{a.name}" if own and is_module(f"{base}.{a.name}") else base for a in node.names]
        for name in names:
            top = name.partition(".")[0]
            if top == "adapter":
                yield name, inside, types_only
            elif top not in sys.stdlib_module_names:
                yield top, inside, types_only
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside, types_only)

    yield from walk(ast.parse(FILES[module].read_text(encoding="utf-8")), False, False)


def is_module(name: str) -> bool:
    return name.removeprefix("adapter.") in FILES


MODULES = [m for m in FILES if m]


@pytest.mark.parametrize("module", MODULES)
def test_file_has_a_level(module: str) -> None:
    level(module)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    for name, _, types_only in imports(module):
        if not name.startswith("adapter.") or types_only or (module, name) in UPWARD:
            continue
        other = name.removeprefix("adapter.")
        assert level(other) <= level(module), f"{module} (level {level(module)}) imports {name} (level {level(other)})"


@pytest.mark.parametrize("module", sorted(TRAVELLING))
def test_file_that_travels_into_triton_imports_the_lower_levels_only(module: str) -> None:
    for name, _, _ in imports(module):
        if name.startswith("adapter."):
            other = name.removeprefix("adapter.")
            assert level(other) <= 2 or other in TRAVELLING, f"{module} imports {name}"
        else:
            assert name in ("adapter", "numpy", "cloudpickle", "triton_python_backend_utils"), (
                f"{module} imports {name}"
            )


@pytest.mark.parametrize("module", MODULES)
def test_third_parties_stay_in_their_rooms(module: str) -> None:
    for name, _, _ in imports(module):
        if name.partition(".")[0] == "adapter":
            continue
        assert name in ROOMS, f"{module} imports {name}, which has no room: give it one in this test"
        rooms = ROOMS[name]
        # the base of all frameworks, and the public table, name none of their libraries
        assert any(in_room(module, room) for room in rooms), f"{module} imports {name}, whose rooms are {rooms}"


@pytest.mark.parametrize("module", MODULES)
def test_imports_stand_at_the_top(module: str) -> None:
    for name, inside, _ in imports(module):
        if not inside:
            assert name not in OPTIONAL, f"{module} imports {name} at the top, which may not be installed"
        elif not module.startswith(CONVERSIONS):
            assert (module, name) in INSIDE | UPWARD, f"{module} imports {name} inside a function"
        else:
            assert not name.startswith("adapter."), f"{module} imports {name} inside a function"


def test_no_file_imports_itself_by_way_of_others() -> None:
    edges = {
        module: {
            name.removeprefix("adapter.")
            for name, inside, types_only in imports(module)
            if name.startswith("adapter.") and not inside and not types_only
        }
        for module in MODULES
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for other in sorted(edges.get(module, ())):
                visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_no_file_overwrites_a_public_name_of_the_package() -> None:
    for name in ("service", "api", "load", "utils", "helpers", "common"):
        assert not (PACKAGE / f"{name}.py").exists()
        assert not (PACKAGE / name).exists()


def test_every_file_says_what_it_is() -> None:
    for module, path in FILES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree) or not tree.body, f"{module or 'adapter'} has no docstring"
