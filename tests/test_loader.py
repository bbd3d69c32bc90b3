from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapter.exceptions import ImportServiceError, NotFound
from adapter.loader import load_service

SERVICE = "import adapter\nsvc = adapter.Service('s')\n"
_numbers = itertools.count()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder; the working directory, the path and the modules are as before afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def write(folder: Path, source: str, name: str = "") -> str:
    """Write a module that no other test has, and return its name."""
    module = name or f"loaded_{next(_numbers)}"
    file = folder / (module.replace(".", "/") + ".py")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)
    return module


@pytest.mark.parametrize("target", ["{0}:svc", "{0}.py:svc", "{0}", "{0}.py", "./{0}.py:svc"])
def test_service_is_found_by_module_or_file_with_or_without_its_name(folder: Path, target: str) -> None:
    module = write(folder, SERVICE)
    service = load_service(target.format(module))
    assert service.name == "s"
    assert service.import_string == f"{module}:svc"


@pytest.mark.parametrize("target", ["{0}/deep.py:svc", "{0}.deep:svc", "{0}.deep", "{0}/deep.py"])
@pytest.mark.parametrize("package", [True, False])
def test_service_is_found_in_a_package_or_a_plain_folder(folder: Path, target: str, package: bool) -> None:
    name = f"loaded_{next(_numbers)}"
    write(folder, "from __future__ import annotations\nimport adapter\nsvc = adapter.Service('s')", f"{name}.deep")
    if package:
        (folder / name / "__init__.py").touch()
    elif ".py" in target:  # a file of a plain folder finds its siblings there
        (folder / name / "deep.py").rename(folder / name / f"{name}_deep.py")
        (folder / name / f"{name}_sibling.py").write_text("NAME = 's'\n")
        with (folder / name / f"{name}_deep.py").open("a") as file:
            file.write(f"\nimport {name}_sibling\n")
        assert load_service(target.format(name).replace("deep", f"{name}_deep")).import_string == f"{name}_deep:svc"
        return
    assert load_service(target.format(name)).import_string == f"{name}.deep:svc"


def test_service_is_found_inside_another_object(folder: Path) -> None:
    module = write(folder, "import adapter\nclass Holder:\n    svc = adapter.Service('s')\n")
    assert load_service(f"{module}:Holder.svc").import_string == f"{module}:Holder.svc"


def test_service_with_two_names_is_one_service(folder: Path) -> None:
    module = write(folder, SERVICE + "same = svc\n")
    assert load_service(module).import_string == f"{module}:svc"


def test_working_dir_becomes_the_place_where_the_service_runs(folder: Path) -> None:
    inner = folder / "inner"
    helper = write(inner, "from pathlib import Path\nNAME = Path('name.txt').read_text()\n")
    module = write(inner, f"import adapter, {helper}\nsvc = adapter.Service({helper}.NAME)\n")
    (inner / "name.txt").write_text("from-file")
    assert load_service(f"{module}:svc", working_dir=inner).name == "from-file"
    assert Path.cwd() == inner.resolve()
    assert sys.path[0] == str(inner.resolve())
    assert load_service(f"{module}.py:svc", working_dir=inner) is load_service(f"{module}:svc", working_dir=inner)
    assert sys.path.count(str(inner.resolve())) == 1


def test_without_a_working_dir_the_one_of_the_process_stays(folder: Path) -> None:
    module = write(folder, SERVICE)
    service = load_service(f"{module}:svc")
    assert Path.cwd() == folder
    assert service.working_dir == str(folder.resolve())


def test_file_that_is_named_comes_before_a_module_of_its_name(folder: Path) -> None:
    module = write(folder / "wanted", "import adapter\nsvc = adapter.Service('wanted')\n")
    write(folder, "import adapter\nsvc = adapter.Service('other')\n", module)
    sys.path.append(str(folder / "wanted"))
    assert load_service(f"{folder}/wanted/{module}.py:svc", working_dir=folder).name == "wanted"


def test_what_is_no_text_is_refused(folder: Path) -> None:
    with pytest.raises(ImportServiceError, match="named by a text such as 'service:svc', not by 5"):
        load_service(5)  # type: ignore[arg-type]  # what a person may write


def test_file_outside_the_working_dir_is_found_by_its_path(folder: Path) -> None:
    outside = folder / "outside"
    module = write(outside, SERVICE)
    (folder / "inside").mkdir()
    for path in (outside / f"{module}.py", Path("..", "outside", f"{module}.py")):
        service = load_service(f"{path}:svc", working_dir=folder / "inside")
        assert service.import_string == f"{module}:svc"


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (SERVICE, "missing:svc", "There is no module 'missing' in .*: check the name and the working directory"),
        (SERVICE, "missing.py:svc", r"There is no file 'missing\.py' in"),
        (SERVICE, "missing", "There is no module 'missing'"),
        (SERVICE, "{0}.missing:svc", r"There is no module '{0}\.missing'"),
        (SERVICE, ":svc", r"':svc' names no module: write for example 'service:svc'"),
        (SERVICE, "", "'' names no module"),
        (SERVICE, "{0}:other", "'{0}' has no 'other' .*; it has svc"),
        (SERVICE, "{0}:svc.other", r"has no 'svc\.other'"),
        (SERVICE + "number = 5\n", "{0}:number", "is not an adapter.Service but a int; it has svc"),
        ("number = 5\n", "{0}:number", "is not an adapter.Service but a int; it has no Service at all"),
        ("number = 5\n", "{0}", r"'{0}' has no adapter\.Service: write `svc = adapter\.Service\(…\)` in it"),
        (SERVICE + "b = adapter.Service('b')\n", "{0}", "'{0}' has several services: say which, as in '{0}:svc'"),
        ("import not_there_at_all\n", "{0}:svc", "'{0}' imports 'not_there_at_all', which is not installed"),
        ("import not_there.inner\n", "{0}.py:svc", r"'{0}\.py' imports 'not_there', which is not installed"),
        ("from json import not_there\n", "{0}:svc", "'{0}' cannot be imported: ImportError: cannot import name"),
        ("x = 1\nx / 0\n", "{0}:svc", r"cannot be imported: ZeroDivisionError: division by zero \(.*{0}\.py, line 2\)"),
        ("def f(:\n", "{0}:svc", r"cannot be imported: SyntaxError: .*{0}\.py, line 1\)"),
        ("raise SystemExit(3)\n", "{0}:svc", "cannot be imported: SystemExit: 3"),
        ("raise Exception\n", "{0}:svc", r"cannot be imported: Exception \("),
    ],
)
def test_target_that_leads_nowhere_is_told_in_one_sentence(
    folder: Path, source: str, target: str, message: str
) -> None:
    module = write(folder, source)
    with pytest.raises(ImportServiceError, match=message.replace("{0}", module)) as caught:
        load_service(target.replace("{0}", module))
    assert caught.value.message.endswith(".")
    assert "\n" not in caught.value.message


def test_error_of_adapter_in_a_module_arrives_as_it_is(folder: Path) -> None:
    module = write(folder, "import adapter\nadapter.models.get('never_saved:latest')\n")
    with pytest.raises(NotFound, match="never_saved"):
        load_service(f"{module}:svc")


@pytest.mark.parametrize("name", ["missing", "file.txt"])
def test_working_dir_that_is_none_is_refused(folder: Path, name: str) -> None:
    (folder / "file.txt").touch()
    with pytest.raises(ImportServiceError, match=f"The working directory '{name}' does not exist"):
        load_service("service:svc", working_dir=name)
    assert Path.cwd() == folder


def test_file_with_the_name_of_another_module_is_refused(folder: Path) -> None:
    (folder / "json.py").write_text(SERVICE)
    with pytest.raises(ImportServiceError, match=r"'json\.py' cannot be imported, since the module 'json' is .*json"):
        load_service("json.py:svc")


def test_load_is_a_public_name_of_the_package(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(SERVICE)
    code = f"import adapter; print(adapter.load('service.py:svc', working_dir={str(tmp_path)!r}))"
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == f'adapter.Service(name="s", import_str="service:svc", working_dir="{tmp_path}")'


def test_module_of_classes_leads_to_the_one_that_no_other_uses(folder: Path) -> None:
    module = write(
        folder,
        "import adapter\n"
        "@adapter.service\n"
        "class Inner: pass\n"
        "@adapter.service\n"
        "class Outer:\n"
        "    inner = adapter.depends(Inner)\n",
    )
    found = load_service(module)
    assert (found.name, found.import_string) == ("outer", f"{module}:Outer")
    assert load_service(f"{module}:Inner").name == "inner"
