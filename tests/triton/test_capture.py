from __future__ import annotations

import functools
import operator
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

import adapter
from adapter.exceptions import ExportError, NotFound, StateException
from adapter.runnable import Runnable
from adapter.triton.capture import Capture, capture
from tests.triton.project import Project, called

HEAD = "from __future__ import annotations\nimport adapter\nfrom adapter import Runnable\n"
TAIL = "\nsvc = adapter.Service('s', runners=[adapter.Runner(R, name='r')])\n"
PLAIN = HEAD + "class R(Runnable):\n    @Runnable.method\n    def f(self, x):\n        return x\n" + TAIL


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    (tmp_path / "code").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    made = Project(tmp_path / "code")
    yield made
    made.forget()


def captured(project: Project) -> Capture:
    (runner,) = project.service().runners
    return capture(runner.spec.runnable_class, runner.spec.init_params, runner.models, project.folder)


def runs(project: Project, tmp_path: Path, *args: Any, method: str = "f") -> Any:
    """What a method of the service's only runner returns in a process that has the exported entry alone."""
    repository = tmp_path / "repository"
    ((entry, version),) = project.export(repository).items()
    entire = repository / entry / str(version)
    moved = tmp_path / "elsewhere"
    entire.rename(moved)
    project.folder.rename(tmp_path / "hidden")
    try:
        return called(moved, method, *args)
    finally:
        (tmp_path / "hidden").rename(project.folder)
        moved.rename(entire)


# ---- code -----------------------------------------------------------------------------------------------------------


def test_module_of_the_service_travels_by_value_with_what_its_class_uses(project: Project, tmp_path: Path) -> None:
    project.write(
        {
            "$service.py": HEAD
            + """
import math
from statistics import mean as average
LIMIT = 3
TABLE = {"a": {1, 2}, "b": [math.pi]}
def helper(x):
    return deeper(x) + LIMIT
def deeper(x):
    return x * 10
class Base(Runnable):
    def shared(self, x):
        return average([x, x])
class R(Base):
    factor = LIMIT
    @Runnable.method
    def f(self, x):
        return [helper(x), len(TABLE["a"]), self.shared(x), self.factor, math.floor(TABLE["b"][0])]
    @property
    def unused(self):
        return helper
"""
            + TAIL
        }
    )
    assert captured(project).code == {}
    assert runs(project, tmp_path, 4) == [43, 2, 4, 3, 3]


def test_modules_of_ones_own_travel_as_files(project: Project, tmp_path: Path) -> None:
    project.write(
        {
            "$helper.py": "import $deeper as d\ndef top(x):\n    return d.low(x)\n",
            "$deeper.py": "def low(x):\n    return x + 1\n",
            "$late/__init__.py": "VALUE = 100\n",
            "$pack/__init__.py": "from .inner import thing\n",
            "$pack/inner.py": "from . import sibling\nfrom .sub.deep import DEEP\ndef thing():\n"
            "    return sibling.NAME + DEEP\n",
            "$pack/sibling.py": "NAME = 'sibling'\n",
            "$pack/sub/__init__.py": "",
            "$pack/sub/deep.py": "from ..sibling import NAME\nDEEP = NAME.upper()\n",
            "$pack/unused.py": "raise AssertionError\n",
            "$unused.py": "raise AssertionError\n",
            "$service.py": HEAD
            + "from $helper import top\nimport $pack\n"
            + """
class R(Runnable):
    @Runnable.method
    def f(self, x):
        import $late
        return [top(x), $pack.thing(), $late.VALUE]
"""
            + TAIL,
        }
    )
    mark = project.mark
    names = [f"{mark}{n}" for n in ("deeper.py", "helper.py", "late/__init__.py")]
    inner = [f"{mark}pack/{n}" for n in ("__init__.py", "inner.py", "sibling.py", "sub/__init__.py", "sub/deep.py")]
    assert sorted(captured(project).code) == sorted(f"code/{n}" for n in [*names, *inner])
    assert runs(project, tmp_path, 1) == [2, "siblingSIBLING", 100]


def test_module_of_a_package_that_holds_the_service_travels_without_it(project: Project, tmp_path: Path) -> None:
    project.write(
        {
            "$pack/__init__.py": "import adapter\nimport adapter.io\nfrom .scores import R\n" + TAIL,
            "$pack/scores.py": HEAD
            + "from .helper import PLUS\nclass R(Runnable):\n    @Runnable.method\n"
            + "    def f(self, x):\n        return x + PLUS\n",
            "$pack/helper.py": "PLUS = 2\n",
            "$pack/words.txt": "some",
            "$service.py": "from $pack import svc\n",
        }
    )
    package = f"code/{project.mark}pack"
    assert sorted(captured(project).code) == [f"{package}/{n}" for n in ("helper.py", "scores.py", "words.txt")]
    assert runs(project, tmp_path, 40) == 42


def test_class_of_another_module_travels_as_its_file(project: Project, tmp_path: Path) -> None:
    project.write(
        {
            "$runnables.py": HEAD
            + "class R(Runnable):\n    @Runnable.method\n    def f(self, x):\n        return -x\n",
            "$service.py": "import adapter\nfrom $runnables import R\n" + TAIL,
        }
    )
    assert sorted(captured(project).code) == [f"code/{project.mark}runnables.py"]
    assert runs(project, tmp_path, 4) == -4


def test_decorators_of_other_modules_travel_with_their_files(project: Project, tmp_path: Path) -> None:
    project.write(
        {
            "$deco.py": "import functools\ndef also(x):\n    return [x]\ndef listed(f):\n    @functools.wraps(f)\n"
            "    def wrapper(*a):\n        return also(f(*a))\n    return wrapper\n",
            "$service.py": HEAD
            + "from $deco import listed\nclass R(Runnable):\n    @Runnable.method\n    @listed\n"
            + "    def f(self, x):\n        return x\n"
            + TAIL,
        }
    )
    assert sorted(captured(project).code) == [f"code/{project.mark}deco.py"]
    assert runs(project, tmp_path, 4) == [4]


def test_class_made_in_a_function_travels_with_what_it_got_there(project: Project, tmp_path: Path) -> None:
    project.write(
        {
            "$factory.py": HEAD
            + """
def make(by):
    def times(x):
        return x * by
    class R(Runnable):
        @Runnable.method
        def f(self, x):
            return times(x)
    return R
""",
            "$service.py": "import adapter\nfrom $factory import make\nR = make(3)\n" + TAIL,
        }
    )
    first = captured(project).fingerprint
    assert runs(project, tmp_path, 5) == 15
    project.write({"$service.py": "import adapter\nfrom $factory import make\nR = make(4)\n" + TAIL})
    assert captured(project).fingerprint != first


def test_added_method_travels(project: Project, tmp_path: Path) -> None:
    source = PLAIN.replace(TAIL, "def g(self, x):\n    return x + 1\nR.add_method(g, 'g')\n" + TAIL)
    first = captured(project.write({"$service.py": source})).fingerprint
    assert runs(project, tmp_path, 1, method="g") == 2
    assert captured(project.write({"$service.py": source.replace("x + 1", "x + 2")})).fingerprint != first


RECORDS = """
import dataclasses, datetime, enum, typing
import pydantic
LIMIT = 5
class Colour(enum.Enum):
    RED = "red"
@dataclasses.dataclass
class Point:
    x: int
    y: int = 0
@dataclasses.dataclass
class Line:
    ends: list[Point]
    note: Point | None = None
class Inner(pydantic.BaseModel):
    value: int = pydantic.Field(alias="Value")
    parent: typing.Optional[Outer] = None
    @pydantic.field_validator("value")
    @classmethod
    def small(cls, v):
        if v > LIMIT:
            raise ValueError("too large")
        return v
class Outer(pydantic.BaseModel):
    inner: Inner
    rows: list[Inner] = []
    when: typing.Optional[datetime.date] = None
    colour: Colour = Colour.RED
Inner.model_rebuild()
class Rows(pydantic.RootModel[list[Inner]]):
    pass
@pydantic.dataclasses.dataclass
class Checked:
    x: int
class R(Runnable):
    @Runnable.method
    def f(self, line: Line, outer: Outer, rows: Rows, checked: Checked) -> Outer:
        assert isinstance(line.ends[0], Point) and line.note is None
        assert isinstance(outer.inner, Inner) and outer.when.year == 2024 and outer.colour is Colour.RED
        assert rows.root[0].value == 2 and checked.x == 3
        try:
            Inner(Value=9)
        except pydantic.ValidationError:
            outer.rows.append(Inner(Value=1))
        return outer
"""
VALUES = (
    {"ends": [{"x": 1}]},
    {"inner": {"Value": 1}, "when": "2024-01-02"},
    [{"Value": 2, "parent": {"inner": {"Value": 3}}}],
    {"x": 3},
)


@pytest.mark.parametrize("place", ["service", "another module"])
def test_records_in_annotations_are_made_anew_where_the_entry_runs(
    project: Project, tmp_path: Path, place: str
) -> None:
    if place == "service":
        project.write({"$service.py": HEAD + RECORDS + TAIL})
    else:
        project.write({"$runnables.py": HEAD + RECORDS, "$service.py": HEAD + "from $runnables import R\n" + TAIL})
    result = runs(project, tmp_path, *VALUES)
    assert result["rows"] == [{"Value": 1, "parent": None}]


def test_records_in_annotations_count_as_source(project: Project) -> None:
    first = captured(project.write({"$service.py": HEAD + RECORDS + TAIL})).fingerprint
    for old, new in (("y: int = 0", "y: int = 1"), ('"Value"', '"Worth"'), ("LIMIT = 5", "LIMIT = 6")):
        changed = captured(project.write({"$service.py": HEAD + RECORDS.replace(old, new) + TAIL})).fingerprint
        assert changed != first


def test_pickling_leaves_the_annotations_of_a_class_as_they_were(project: Project) -> None:
    taken = captured(project.write({"$service.py": HEAD + RECORDS + TAIL}))
    function: Any = taken.runnable
    assert function.f.__annotations__["line"] == "Line"
    assert project.service().runners[0].spec.runnable_class.__module__ == f"{project.mark}service"
    assert not cloudpickle.list_registry_pickle_by_value()


def test_class_of_a_script_travels_by_value(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        HEAD
        + """
from pathlib import Path
from adapter.triton.export import Machine, plan, write
def helper(x):
    return x + 1
class R(Runnable):
    @Runnable.method
    def f(self, x):
        return helper(x)
"""
        + TAIL
        + "write(plan(svc, folder=Path('.'), machine=Machine(1, 0)), Path('repository'))\n"
    )
    subprocess.run([sys.executable, script.name], cwd=tmp_path, check=True, capture_output=True)
    assert called(tmp_path / "repository" / "s.r" / "1", "f", 1) == 2


def test_runnable_of_a_notebook_is_exported(tmp_path: Path) -> None:
    """Its cells are no file: `__main__` of a program that comes from standard input is the same."""
    cells = """
from dataclasses import dataclass
from pathlib import Path
import adapter
from adapter.triton.export import plan, write
FACTOR = 3
@dataclass
class Row:
    number: int
def helper(row):
    return row.number * FACTOR
class R(adapter.Runnable):
    def __init__(self, plus):
        self.plus = plus
    @adapter.Runnable.method
    def f(self, row: Row) -> int:
        return helper(row) + self.plus
runner = adapter.Runner(R, runnable_init_params={"plus": 1}, warmup=Row(1))
svc = adapter.Service("notebook", runners=[runner])
runner.init_local(quiet=True)
assert runner.run(Row(2)) == 7
runner.destroy()
write(plan(svc, folder=Path(".")), Path("repository"))
"""
    done = subprocess.run([sys.executable, "-"], input=cells, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert called(tmp_path / "repository" / "notebook.r" / "1", "f", {"number": 4}) == 13


def test_class_typed_at_a_prompt_is_captured(tmp_path: Path) -> None:
    space: dict[str, Any] = {"__name__": "__main__", "Runnable": Runnable}
    source = "class R(Runnable):\n    @Runnable.method\n    def f(self, x):\n        return x + {0}\n"
    prints = set()
    for number in (1, 2):
        exec(source.replace("{0}", str(number)), space)
        taken = capture(space["R"], {}, [], tmp_path)
        assert cloudpickle.loads(taken.pickle())[0]().f(1) == 1 + number
        prints.add(taken.fingerprint)
    assert len(prints) == 2


# ---- fingerprints ---------------------------------------------------------------------------------------------------

LEARNED = (
    HEAD
    + """
import re, functools, datetime, enum, collections
import numpy as np
from $helper import from_helper
LOW, HIGH = 1, 2
WORDS = {"one", "two", "three"}
LENGTHS = {w: len(w) for w in WORDS}
PATTERN = re.compile("a+")
PARTIAL = functools.partial(int, base=2)
WEIGHTS = np.arange(3)
SINCE = datetime.date(2024, 1, 1)
class Thing:
    def __init__(self, size):
        self.size = size
        self.me = self
    def grow(self):
        return self.size + 1
THING = Thing(5)
BOUND = Thing(6).grow
QUEUE = collections.deque([1, 2])
class R(Runnable):
    ATTRIBUTE = LOW
    def __init__(self, words, more=None):
        self.words = words
    @Runnable.method
    def f(self, x, default=HIGH):
        return [LOW, HIGH, sorted(WORDS), LENGTHS["one"], PATTERN.pattern, PARTIAL("11"), WEIGHTS.tolist(),
                SINCE.year, THING.size, BOUND(), list(QUEUE), from_helper(), x, default]
svc = adapter.Service('s', runners=[adapter.Runner(R, name='r', runnable_init_params={"words": {"a", "b"}})])
"""
)
HELPER = "def from_helper():\n    return 1\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LOW, HIGH = 1, 2", "LOW, HIGH = 2, 1"),
        ('"three"', '"four"'),
        ('"a+"', '"b+"'),
        ("base=2", "base=3"),
        ("arange(3)", "arange(4)"),
        ("2024, 1, 1", "2023, 1, 1"),
        ("Thing(5)", "Thing(7)"),
        ("Thing(6)", "Thing(7)"),
        ("self.size + 1", "self.size + 2"),
        ("deque([1, 2])", "deque([2, 1])"),
        ("return [LOW", "return [0, LOW"),
        ("default=HIGH", "default=LOW"),
        ("ATTRIBUTE = LOW", "ATTRIBUTE = HIGH"),
        ('{"a", "b"}', '{"a", "c"}'),
    ],
)
def test_fingerprint_changes_with_whatever_the_class_uses(project: Project, old: str, new: str) -> None:
    assert old in LEARNED
    before = captured(project.write({"$helper.py": HELPER, "$service.py": LEARNED})).fingerprint
    assert captured(project).fingerprint == before
    after = captured(project.write({"$service.py": LEARNED.replace(old, new)})).fingerprint
    assert after != before


def test_fingerprint_changes_with_a_module_that_travels_as_a_file(project: Project) -> None:
    before = captured(project.write({"$helper.py": HELPER, "$service.py": LEARNED})).fingerprint
    assert captured(project.write({"$helper.py": HELPER.replace("1", "2")})).fingerprint != before


def test_fingerprint_stays_when_something_else_changes(project: Project) -> None:
    before = captured(project.write({"$helper.py": HELPER, "$service.py": LEARNED})).fingerprint
    more = LEARNED + "\n@svc.api(adapter.io.JSON(), adapter.io.JSON())\ndef api(x):\n    return x\nOTHER = 5\n"
    assert captured(project.write({"$service.py": more})).fingerprint == before


# ---- init parameters ------------------------------------------------------------------------------------------------

READER = (
    HEAD
    + """
from pathlib import Path
class R(Runnable):
    def __init__(self, **given):
        self.given = given
    @Runnable.method
    def f(self):
        def read(value):
            if isinstance(value, dict):
                return {k: read(v) for k, v in value.items()}
            if isinstance(value, (list, tuple)):
                return [read(v) for v in value]
            path = Path(str(value)[:99].replace("\\0", ""))
            if path.is_dir() and "/" in str(value):
                return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
            return path.read_text() if path.is_file() else value
        return {name: [type(v).__name__.removeprefix("Posix"), read(v)] for name, v in self.given.items()}
"""
)


def reading(given: str) -> str:
    return (
        READER
        + f"""
HERE = Path(__file__).parent
svc = adapter.Service('s', runners=[adapter.Runner(R, name='r', runnable_init_params={given})])
"""
    )


BOTH = ["data/a.txt", "data/in/b.txt"]


@pytest.mark.parametrize(
    ("given", "files", "seen"),
    [
        ("{'p': 'data/a.txt'}", ["data/a.txt"], {"p": ["str", "A"]}),
        ("{'p': './data/a.txt'}", ["data/a.txt"], {"p": ["str", "A"]}),
        ("{'p': Path('data/a.txt')}", ["data/a.txt"], {"p": ["Path", "A"]}),
        ("{'p': str(HERE / 'data/a.txt')}", ["data/a.txt"], {"p": ["str", "A"]}),
        ("{'p': HERE / 'data/a.txt'}", ["data/a.txt"], {"p": ["Path", "A"]}),
        ("{'p': ['data/a.txt', {'x': 'data/in/b.txt'}]}", BOTH, {"p": ["list", ["A", {"x": "B"}]]}),
        ("{'p': 'data/'}", BOTH, {"p": ["str", ["a.txt", "in/b.txt"]]}),
        ("{'p': HERE / 'data'}", BOTH, {"p": ["Path", ["a.txt", "in/b.txt"]]}),
        ("{'p': 'data'}", [], {"p": ["str", "data"]}),
        ("{'p': 'missing/file.txt'}", [], {"p": ["str", "missing/file.txt"]}),
        ("{'p': 5, 'q': None, 'r': ''}", [], {"p": ["int", 5], "q": ["NoneType", None], "r": ["str", ""]}),
        ("{'p': 'x' * 5000, 'q': 'a\\0b'}", [], {"p": ["str", "x" * 5000], "q": ["str", "a\0b"]}),
    ],
)
def test_files_that_init_parameters_name_travel_and_are_found(
    project: Project, tmp_path: Path, given: str, files: list[str], seen: Any
) -> None:
    project.write({"data/a.txt": "A", "data/in/b.txt": "B", "other.txt": "no", "$service.py": reading(given)})
    assert sorted(captured(project).files) == [f"files/{f}" for f in files]
    assert runs(project, tmp_path) == seen


def test_file_outside_the_folder_of_the_service_stays_where_it_is(project: Project, tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("out")
    project.write({"$service.py": reading("{'p': str(HERE.parent / 'outside.txt')}")})
    assert captured(project).files == {}
    assert runs(project, tmp_path) == {"p": ["str", "out"]}


def test_fingerprint_changes_with_a_file_and_not_with_the_place_of_the_folder(project: Project, tmp_path: Path) -> None:
    project.write({"data/a.txt": "A", "$service.py": reading("{'p': HERE / 'data/a.txt'}")})
    before = captured(project).fingerprint
    project.write({"data/a.txt": "B"})
    assert captured(project).fingerprint != before
    project.write({"data/a.txt": "A"})
    moved = Project(tmp_path / "moved", project.mark)
    project.folder.rename(moved.folder)
    assert captured(moved).fingerprint == before


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("{'p': __import__('threading').Lock()}", "cannot pickle '_thread.lock' object"),
        ("{'p': (i for i in [])}", "cannot pickle 'generator' object"),
        ("{'p': [{'x': __import__('threading').Lock()}]}", "lock"),
    ],
)
def test_init_parameter_that_cannot_be_pickled_is_named(project: Project, given: str, reason: str) -> None:
    project.write({"$service.py": reading(given)})
    with pytest.raises(ExportError, match=rf"The Runnable R cannot be written down: .*{reason}.*in its __init__"):
        captured(project)


@pytest.mark.parametrize("name", ["svc", "runner"])
def test_service_or_runner_used_inside_a_runnable_is_named(project: Project, name: str) -> None:
    source = HEAD + (
        "class R(Runnable):\n    @Runnable.method\n    def f(self, x):\n        return NAME\n"
        "runner = adapter.Runner(R)\nsvc = adapter.Service('s', runners=[runner])\n"
    )
    project.write({"$service.py": source.replace("NAME", name)})
    with pytest.raises(ExportError, match="is used inside a Runnable, and cannot go with it into Triton"):
        captured(project)


# ---- saved models ---------------------------------------------------------------------------------------------------


double = functools.partial(operator.mul, 2)


def test_models_that_a_runnable_names_travel_with_it(project: Project, tmp_path: Path) -> None:
    saved = adapter.picklable_model.save_model("captured", double)
    source = HEAD + (
        f"model = adapter.models.get('{saved.tag}')\n"
        "class R(Runnable):\n"
        "    def __init__(self):\n"
        "        self.loaded = model.load_model()\n"
        "    @Runnable.method\n"
        "    def f(self):\n"
        "        latest = adapter.models.get('captured:latest')\n"
        "        return [self.loaded(21), str(model.tag), latest == model, model.path]\n"
    )
    project.write({"$service.py": source + TAIL})
    taken = captured(project)
    assert [m.tag for m in taken.models] == [saved.tag]
    loaded, tag, latest, path = runs(project, tmp_path)
    assert (loaded, tag, latest) == (42, str(saved.tag), True)
    assert path == str(tmp_path / "elsewhere" / "models" / saved.tag.name / saved.info.version)


def test_models_given_to_the_runner_travel_and_no_others(project: Project, tmp_path: Path) -> None:
    saved = adapter.picklable_model.save_model("given", double)
    adapter.picklable_model.save_model("not_given", double)
    source = HEAD + (
        "class R(Runnable):\n    @Runnable.method\n    def f(self, name):\n"
        "        try:\n            return adapter.picklable_model.load_model(name)(2)\n"
        "        except adapter.exceptions.NotFound as error:\n            return str(error)\n"
        "svc = adapter.Service('s', runners=[adapter.Runner(R, models=[adapter.models.get('given')])])\n"
    )
    project.write({"$service.py": source})
    assert [m.tag for m in captured(project).models] == [saved.tag]
    assert runs(project, tmp_path, "given:latest") == 4
    assert "not part of this entry" in runs(project, tmp_path, "not_given")


def test_fingerprint_changes_with_a_model(project: Project) -> None:
    source = HEAD + (
        "class R(Runnable):\n    @Runnable.method\n    def f(self, x):\n        return x\n"
        "svc = adapter.Service('s', runners=[adapter.Runner(R, models=[adapter.models.get('versioned')])])\n"
    )
    project.write({"$service.py": source})
    adapter.picklable_model.save_model("versioned", double)
    before = captured(project).fingerprint
    assert captured(project).fingerprint == before
    adapter.picklable_model.save_model("versioned", double)
    assert captured(project).fingerprint != before


# ---- requirements ---------------------------------------------------------------------------------------------------


def test_requirements_are_the_installed_libraries_that_the_code_imports(project: Project) -> None:
    import pydantic

    project.write(
        {
            "$helper.py": "import json\nimport pydantic\ndef made():\n    return pydantic.BaseModel\n",
            "$service.py": HEAD
            + "import numpy as np\nfrom $helper import made\nimport click\nclass R(Runnable):\n    @Runnable.method\n"
            + "    def f(self, x):\n        import not_installed_anywhere\n        return np.sum(x), made()\n"
            + TAIL,
        }
    )
    assert captured(project).requirements == (f"numpy=={np.__version__}", f"pydantic=={pydantic.VERSION}")


def test_path_and_model_of_an_entry_mean_nothing_elsewhere(project: Project) -> None:
    project.write({"a.txt": "A", "$service.py": reading("{'p': HERE / 'a.txt'}")})
    with pytest.raises(adapter.exceptions.AdapterError, match=r"'files/a\.txt' belongs to an entry"):
        cloudpickle.loads(captured(project).pickle())
    assert issubclass(NotFound, adapter.exceptions.AdapterError)
    assert issubclass(StateException, adapter.exceptions.AdapterError)
