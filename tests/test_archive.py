from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cloudpickle
import joblib
import lightgbm
import numpy as np
import pytest
import xgboost
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from adapter import models, picklable_model, sklearn
from adapter.archive import FORMATS, destination
from adapter.exceptions import AlreadyExists, InvalidArgument, NotFound, StateException
from adapter.model import Model, Parameter, Signature
from adapter.tensor import TensorSpec

IRIS = np.array([[5.1, 3.5, 1.4, 0.2], [6.3, 3.3, 6.0, 2.5], [5.0, 3.4, 1.5, 0.2], [5.9, 3.0, 5.1, 1.8]])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAPTER_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def saved() -> Model:
    with models.create("rules:v1", labels={"team": "ü"}, metadata={"n": 1}, custom_objects={"a": 1}) as model:
        Path(model.path_of("rules.txt")).write_text("x > 3")
        Path(model.path_of("sub/deep")).mkdir(parents=True)
        Path(model.path_of("sub/deep/weights ü.bin")).write_bytes(bytes(range(256)) * 100)
    return model


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def beside(home: Path) -> list[str]:
    """What there is in the store beside models."""
    return sorted(p.name for p in (home / "models").iterdir() if p.name != ".lock") if home.exists() else []


# ---- out and in again -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_model_is_the_same_after_export_and_import(saved: Model, tmp_path: Path, form: str) -> None:
    before = content(saved.folder)
    place = models.export_model("rules", tmp_path / "out" if form == "folder" else f"{tmp_path}/out{FORMATS[form][0]}")
    if form == "folder":
        place = models.export_model("rules", tmp_path / "folder", "folder")
    models.delete("rules")
    found = models.import_model(place)
    assert (found.tag, found.info) == (saved.tag, saved.info)
    assert content(found.folder) == before
    assert models.get("rules:latest").custom_objects == {"a": 1}
    assert found.folder == models.get("rules:v1").folder


DESTINATIONS: list[tuple[str | None, str | None, str, str]] = [
    (None, None, "iris-v1.adaptermodel", "adaptermodel"),
    (None, "zip", "iris-v1.zip", "zip"),
    (None, "folder", "iris-v1", "folder"),
    ("here", None, "here/iris-v1.adaptermodel", "adaptermodel"),
    ("new/", "gz", "new/iris-v1.tar.gz", "gz"),
    ("mine", None, "mine.adaptermodel", "adaptermodel"),
    ("mine.v2", None, "mine.v2.adaptermodel", "adaptermodel"),
    ("mine.tgz", None, "mine.tgz", "gz"),
    ("mine.tar.xz", None, "mine.tar.xz", "xz"),
    ("mine.zip", "tar", "mine.zip.tar", "tar"),
    ("mine", "folder", "mine", "folder"),
]


@pytest.mark.parametrize(("path", "form", "expected", "expected_form"), DESTINATIONS)
def test_destination(tmp_path: Path, path: str | None, form: str | None, expected: str, expected_form: str) -> None:
    (tmp_path / "here").mkdir()
    assert destination("iris-v1", path, form) == (tmp_path / expected, expected_form)


def test_export_when_it_cannot_be_written(saved: Model, tmp_path: Path) -> None:
    place = models.export_model("rules")
    assert place == str(tmp_path / "rules-v1.adaptermodel")
    with pytest.raises(AlreadyExists, match=r"rules-v1\.adaptermodel exists already: remove it"):
        models.export_model("rules")
    with pytest.raises(StateException, match="No such file or directory"):
        models.export_model("rules", "nowhere/at/all")
    with pytest.raises(InvalidArgument, match="'rar' is no format of a saved model: there are adaptermodel, tar"):
        models.export_model("rules", None, "rar")
    with pytest.raises(InvalidArgument, match="'s3://b/k' is no path of this machine"):
        models.export_model("rules", "s3://b/k")
    with pytest.raises(NotFound, match="There is no model 'other'"):
        models.export_model("other")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "rules-v1.adaptermodel"]


def test_file_names_nobody(saved: Model) -> None:
    with tarfile.open(models.export_model("rules", None, "gz")) as tar:
        assert {(m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, "", "")}


def test_import_when_the_version_is_there(saved: Model, home: Path) -> None:
    place = models.export_model("rules")
    with pytest.raises(AlreadyExists, match=r"rules:v1 exists already in .*, and a version never changes"):
        models.import_model(place)
    assert beside(home) == ["rules"]


def test_import_of_an_older_version_leaves_latest(saved: Model) -> None:
    place = models.export_model("rules")
    models.delete("rules")
    with models.create("rules:v0"):
        pass
    models.import_model(place)
    assert models.get("rules").tag.version == "v0"
    models.delete("rules:v0")
    assert models.get("rules").tag.version == "v1"


# ---- what is refused ------------------------------------------------------------------------------------------------

RECORD = {
    "name": "bad",
    "version": "v1",
    "module": "",
    "context": {"adapter_version": "0"},
    "creation_time": "2024-01-01T00:00:00+00:00",
}


def record(**changes: Any) -> bytes:
    return yaml.safe_dump({**RECORD, **changes}).encode()


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def zip_of(name: str, mode: int = 0o100644, data: bytes = b"x") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("model.yaml", record())
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        made.writestr(entry, data)
    return buffer.getvalue()


def with_record(text: bytes) -> bytes:
    return tar_of((member("model.yaml"), text))


YAML = (member("model.yaml"), record())
BAD: dict[str, tuple[bytes, str]] = {
    "above": (tar_of(YAML, (member("../../escaped"), b"x")), "'../../escaped' lies outside it"),
    "absolute": (tar_of(YAML, (member("/tmp/escaped"), b"x")), "'/tmp/escaped' lies outside it"),
    "hidden": (tar_of(YAML, (member("a/../../escaped"), b"x")), "lies outside it"),
    "symlink": (tar_of(YAML, (member("a", tarfile.SYMTYPE, "/etc/passwd"), b"")), "'a' is a link or a device"),
    "hardlink": (tar_of(YAML, (member("a", tarfile.LNKTYPE, "model.yaml"), b"")), "'a' is a link or a device"),
    "fifo": (tar_of(YAML, (member("a", tarfile.FIFOTYPE), b"")), "'a' is a link or a device"),
    "twice": (tar_of(YAML, (member("./model.yaml"), record())), "'./model.yaml' is in it twice"),
    "file and folder": (tar_of(YAML, (member("a"), b"x"), (member("a/b"), b"x")), "'a/b'"),
    "zip above": (zip_of("../escaped"), "'../escaped' lies outside it"),
    "zip symlink": (zip_of("a", 0o120777, b"/etc/passwd"), "'a' is a link or a device"),
    "no record": (tar_of((member("deep/model.yaml"), record())), "holds no saved model: there is no model.yaml in it"),
    "empty": (b"", "cannot be read as a saved model"),
    "text": (b"hello", "cannot be read as a saved model"),
    "truncated": (tar_of(YAML, (member("a"), os.urandom(50_000)))[:20_000], "cannot be read as a saved model"),
    "no yaml": (with_record(b"{"), "model.yaml of .* cannot be read"),
    "no text": (with_record(b"\xff\xfe\xfa"), "model.yaml of .* cannot be read"),
    "no mapping": (with_record(b"- 1"), "is not the record of a saved model"),
    "no version": (with_record(record(version=None)), "its record names no version"),
    "latest": (with_record(record(version="latest")), "its record names no version"),
    "no name": (with_record(b"version: v1\ncontext: {adapter_version: 0}"), "it has no 'name'"),
    "path as name": (with_record(record(name="../../up")), "'../../up' cannot be a model name"),
    "path as version": (with_record(record(version="../up")), "'../up' cannot be a version"),
    "number as version": (with_record(record(version=7)), "A version is a string, not 7"),
    "signatures": (with_record(record(signatures=["predict"])), "cannot be used"),
    "time": (with_record(record(creation_time="yesterday")), "Invalid isoformat string"),
    "python": (with_record(b"name: !!python/object/apply:os.getcwd []"), "cannot be read"),
}


@pytest.mark.parametrize(("data", "text"), BAD.values(), ids=BAD.keys())
def test_import_when_the_file_is_unfit(home: Path, tmp_path: Path, data: bytes, text: str) -> None:
    (tmp_path / "bad.adaptermodel").write_bytes(data)
    with pytest.raises((InvalidArgument, StateException), match=text) as caught:
        models.import_model("bad.adaptermodel")
    assert "\n" not in str(caught.value)
    assert beside(home) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.adaptermodel", "home"]


def test_import_when_the_zip_has_a_password(tmp_path: Path) -> None:
    data = bytearray(zip_of("a"))
    data[6] |= 1  # the flag of the first entry, here and in the directory
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "bad.zip").write_bytes(data)
    with pytest.raises(InvalidArgument, match="encrypted, password required"):
        models.import_model("bad.zip")


@pytest.mark.parametrize("path", ["nothing", "s3://bucket/model", "home/../missing.bentomodel"])
def test_import_when_there_is_nothing(path: str) -> None:
    with pytest.raises((NotFound, InvalidArgument), match=r"There is no file or folder|is no path of this machine"):
        models.import_model(path)


def test_import_when_it_is_neither_file_nor_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidArgument, match="neither a file nor a folder"):
        models.import_model("pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.yaml").write_bytes(record())
    os.mkfifo(tmp_path / "folder" / "pipe")
    with pytest.raises(InvalidArgument, match="cannot be copied"):
        models.import_model("folder")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=20), cut=st.integers(0)
)
def test_import_of_a_damaged_file_is_one_sentence(home: Path, damage: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(tar_of(YAML, (member("a"), bytes(300))))
    for place, byte in damage:
        data[place % len(data)] = byte
    Path("damaged").write_bytes(data[: len(data) - cut % len(data)])
    try:
        models.import_model("damaged")
    except (InvalidArgument, StateException) as error:
        assert "\n" not in str(error)  # noqa: PT017  # it may also be whole enough
    else:
        models.delete("bad")
    assert beside(home) == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(["name", "version", "module", "labels", "context", "signatures", "creation_time", "options"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=8),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
            max_leaves=5,
        ),
    )
)
def test_import_of_any_record_is_one_sentence(changes: dict[str, Any]) -> None:
    Path("any").write_bytes(with_record(record(**changes)))
    try:
        found = models.import_model("any")
    except (InvalidArgument, StateException, AlreadyExists):
        return
    models.delete(found.tag)


# ---- BentoML's ------------------------------------------------------------------------------------------------------


def theirs(module: str, **changes: Any) -> dict[str, Any]:
    """A record as BentoML 1.1.11 writes it."""
    return {
        "name": "iris_clf",
        "version": "o5py7qxfw6lowax4",
        "module": module,
        "labels": {"team": "a", "n": "1"},
        "options": {},
        "metadata": {"acc": 0.9},
        "context": {
            "framework_name": "sklearn",
            "framework_versions": {"scikit-learn": "1.3.0"},
            "bentoml_version": "1.1.11",
            "python_version": "3.11.7",
        },
        "signatures": {"predict": {"batchable": True, "batch_dim": [0, 0]}},
        "api_version": "v1",
        "creation_time": "2024-05-21T14:25:56.973041+00:00",
        **changes,
    }


def write_theirs(folder: Path, record: dict[str, Any], write: Callable[[Path], Any]) -> Path:
    folder.mkdir()
    (folder / "model.yaml").write_text(yaml.safe_dump(record, sort_keys=False))
    write(folder / "saved_model.pkl")
    (folder / "custom_objects.pkl").write_bytes(cloudpickle.dumps({"names": ["setosa", "virginica"]}))
    return folder


def write_svc(file: Path) -> None:
    joblib.dump(SVC(gamma="scale").fit(IRIS, [0, 1, 0, 1]), file)


def packed(folder: Path) -> Path:
    place = folder.with_suffix(".bentomodel")
    with tarfile.open(place, "w:xz") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, file.name)
    return place


@pytest.mark.parametrize("as_file", [True, False])
def test_import_of_a_bentoml_model_of_sklearn(tmp_path: Path, as_file: bool) -> None:
    folder = write_theirs(tmp_path / "o5py7qxfw6lowax4", theirs("bentoml.sklearn"), write_svc)
    found = models.import_model(packed(folder) if as_file else folder)
    assert str(found.tag) == "iris_clf:o5py7qxfw6lowax4"
    assert sklearn.load_model("iris_clf:latest").predict(IRIS).tolist() == [0, 1, 0, 1]
    info = sklearn.get("iris_clf").info
    assert info.signatures == {
        "predict": Signature(
            batchable=True,
            inputs=(TensorSpec("float64", (-1, 4), "X"),),
            outputs=(TensorSpec("int64", (-1,), "output_0"),),
            parameters=(Parameter("X"),),
        )
    }
    assert (info.labels, info.metadata) == ({"team": "a", "n": "1"}, {"acc": 0.9})
    assert info.creation_time == datetime(2024, 5, 21, 14, 25, 56, 973041, timezone.utc)
    assert models.get("iris_clf").custom_objects == {"names": ["setosa", "virginica"]}
    runner = found.to_runner()
    runner.init_local()
    assert runner.predict.run(IRIS).tolist() == [0, 1, 0, 1]
    # from here on it is one of ours
    place = models.export_model("iris_clf")
    models.delete("iris_clf")
    assert models.import_model(place).info == info


class Plus:
    def __init__(self, more: int) -> None:
        self.more = more

    def __call__(self, x: Any) -> Any:
        return x + self.more


def test_import_of_a_bentoml_picklable_model(tmp_path: Path) -> None:
    signatures = {"__call__": {"batchable": False}}
    record = theirs("bentoml.picklable_model", options={"partial_kwargs": {}}, signatures=signatures)
    models.import_model(write_theirs(tmp_path / "plus", record, lambda f: f.write_bytes(cloudpickle.dumps(Plus(2)))))
    assert picklable_model.load_model("iris_clf")(3) == 5
    assert picklable_model.get("iris_clf").info.signatures["__call__"].parameters == (Parameter("x"),)


def write_xgboost(folder: Path) -> None:
    matrix = xgboost.DMatrix(IRIS, [0, 1, 0, 1])
    xgboost.train({"objective": "binary:logistic"}, matrix, 1).save_model(folder / "saved_model.ubj")


def write_xgboost_classifier(folder: Path) -> None:
    xgboost.XGBClassifier(n_estimators=1).fit(IRIS, [0, 1, 0, 1]).save_model(folder / "saved_model.ubj")


def write_lightgbm(folder: Path) -> None:
    data = lightgbm.Dataset(IRIS, [0, 1, 0, 1])
    lightgbm.train({"objective": "binary", "verbose": -1}, data, 1).save_model(folder / "saved_model.ubj")


def write_onnx(folder: Path) -> None:
    model = LogisticRegression().fit(IRIS, [0, 1, 0, 1])
    made = to_onnx(model, IRIS.astype("float32"), options={"zipmap": False})
    (folder / "saved_model.onnx").write_bytes(made.SerializeToString())


@pytest.mark.parametrize(
    ("module", "options", "method", "write", "tensors"),
    [
        ("xgboost", {"model_class": "Booster"}, "predict", write_xgboost, ("data", "float32", ["float32"])),
        ("xgboost", {}, "predict", write_xgboost, ("data", "float32", ["float32"])),
        ("xgboost", {"model_class": "XGBClassifier"}, "predict", write_xgboost_classifier, ("X", "float32", ["int64"])),
        ("lightgbm", {}, "predict", write_lightgbm, ("data", "float64", ["float64"])),
        (
            *("onnx", {"providers": None, "input_specs": {"run": []}}, "run", write_onnx),
            ("X", "float32", ["int64", "float32"]),
        ),
    ],
)
def test_import_of_a_bentoml_model_of_another_library(
    tmp_path: Path, module: str, options: dict[str, Any], method: str, write: Callable[[Path], None], tensors: Any
) -> None:
    signatures = {method: {"batchable": True, "batch_dim": [0, 0]}}
    record = theirs(f"bentoml.{module}", options=options, signatures=signatures)
    model = models.import_model(write_theirs(tmp_path / "theirs", record, lambda file: write(file.parent)))
    signature = model.info.signatures[method]
    (rows,) = signature.inputs or ()
    assert (rows.name, rows.dtype, [s.dtype for s in signature.outputs or ()]) == tensors
    runner = model.to_runner()
    runner.init_local(quiet=True)
    assert len(runner.run(IRIS)) == (4 if method == "predict" else 2)
    runner.destroy()


def test_import_of_a_bentoml_model_that_cannot_be_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_theirs(tmp_path / "broken", theirs("bentoml.sklearn"), lambda f: f.write_bytes(b"no pickle"))
    found = models.import_model(folder)
    assert found.info.signatures == {"predict": Signature(batchable=True)}
    assert "iris_clf:o5py7qxfw6lowax4 could not be loaded here, so its calls will travel as blobs" in caplog.text


def test_import_of_a_bentoml_model_with_files_of_its_own(tmp_path: Path) -> None:
    record = theirs("my.rules", signatures={})
    models.import_model(write_theirs(tmp_path / "own", record, lambda f: f.write_text("x > 3")))
    assert Path(models.get("iris_clf").path_of("saved_model.pkl")).read_text() == "x > 3"


@pytest.mark.parametrize("module", ["bentoml.no_such", "bentoml.detectron"])
def test_import_of_a_bentoml_model_of_another_framework(tmp_path: Path, home: Path, module: str) -> None:
    folder = write_theirs(tmp_path / "other", theirs(module), lambda f: f.write_bytes(b""))
    with pytest.raises(InvalidArgument, match=rf"It was saved with {module}, and adapter reads models of .*sklearn"):
        models.import_model(folder)
    assert beside(home) == []
