from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import adapter

STANDARD = "{m for m in sys.modules if m.partition('.')[0] not in sys.stdlib_module_names}"


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_package_imports_the_standard_library_only() -> None:
    code = f"import sys; before = {STANDARD}; import adapter; print(sorted({STANDARD} - before))"
    assert python(code) == "['adapter']"


@pytest.mark.parametrize("name", adapter.__all__)
def test_public_name_resolves_when_it_is_used_first(name: str) -> None:
    assert python(f"import adapter; print(adapter.{name} is not None)") == "True"


def test_public_names_are_those_of_the_lazy_table() -> None:
    assert list(adapter.__all__) == sorted(adapter._LAZY)
    assert set(adapter.__all__) <= set(dir(adapter))


def test_public_names_are_those_that_type_checkers_see() -> None:
    tree = ast.parse(Path(adapter.__file__).read_text(encoding="utf-8"))
    (block,) = (n for n in tree.body if isinstance(n, ast.If))
    seen = {a.asname or a.name for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert seen == set(adapter.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'adapter' has no attribute 'nothing'"):
        _ = adapter.nothing


def test_modules_do_not_overwrite_public_names() -> None:
    """`adapter.service` and `adapter.api` are decorators, which modules of that name would overwrite when imported."""
    modules = {m.name for m in pkgutil.iter_modules(adapter.__path__)}
    assert not modules & {"service", "api", "load"}
    for name in modules & set(adapter.__all__):
        assert isinstance(getattr(adapter, name), ModuleType)
    for name in adapter.__all__:
        importlib.import_module(adapter._LAZY[name].partition(":")[0])
    for name in adapter.__all__:
        attribute = adapter._LAZY[name].partition(":")[2]
        assert isinstance(getattr(adapter, name), ModuleType) == (not attribute)


def test_version_is_a_version() -> None:
    assert all(part.isdecimal() for part in adapter.__version__.split("."))
