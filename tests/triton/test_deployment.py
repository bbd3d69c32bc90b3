"""What `deploy` and `rollback` decide, and what a Triton that serves nothing yet makes of it."""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import trustme
from tritonclient.grpc import service_pb2

import adapter
from adapter.exceptions import DeploymentError
from adapter.model import Model
from adapter.resources import Machine
from adapter.services import Service
from adapter.triton import deployment
from adapter.triton.address import Address, Tls, parse
from adapter.triton.admin import Control
from adapter.triton.deployment import Row, deploy, outdated, rollback
from adapter.triton.engine import Engine
from adapter.triton.export import plan, versions_of, write
from adapter.triton.installation import Installation
from adapter.triton.manifest import HISTORY, Manifest, served
from adapter.triton.storage import Folder

MACHINE = Machine(cpus=1, gpus=0)
NOWHERE = parse("grpc://127.0.0.1:9")


def saved(function: Any, **options: Any) -> Model:
    signature = {"batchable": True, "input_spec": ("float32", (-1, 2)), "output_spec": ("float32", (-1, 2))}
    return adapter.picklable_model.save_model("deployable", function, signatures={"__call__": signature}, **options)


def service_of(model: Model) -> Service:
    return Service("s", runners=[model.to_runner()])


double, triple = (functools.partial(operator.mul, n) for n in (2, 3))
narrow = operator.itemgetter((slice(None), slice(0, 1)))
eight_rows = functools.partial(operator.add, np.zeros((8, 2), np.float32))  # no more and no less
SAMPLE = np.ones((1000, 2), np.float32)


@pytest.fixture(scope="module")
def engine(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A Triton that serves nothing yet."""
    with Engine(installation, tmp_path_factory.mktemp("repository"), [], env=os.environ) as found:
        found.wait_ready()
        yield found


def deployed(engine: Engine, model: Model, folder: Path) -> list[Row]:
    service = service_of(model)
    address = parse(engine.url, headers=dict(engine.metadata))
    planned = plan(service, folder=folder, machine=MACHINE)
    return deploy(service, planned, engine.repository, lambda runner: address, tell=print)


def test_saved_model_is_tried_with_its_sample(engine: Engine, tmp_path: Path) -> None:
    name = "deployable.__call__"
    with pytest.raises(DeploymentError) as caught:
        deployed(engine, saved(narrow, sample=SAMPLE), tmp_path)
    told = f"Version 1 of {name} was not deployed: the Triton at {engine.url} says: __call__() failed on its sample: "
    assert caught.value.message.startswith(told)
    assert caught.value.message.endswith("Nothing was changed.")
    assert engine.control.versions() == {}
    assert [p.name for p in engine.repository.iterdir() if p.is_dir()] == []

    (row,) = deployed(engine, saved(double), tmp_path)
    assert (row.entry, row.before, row.version, row.check) == (name, None, 1, "ready, has no sample")
    (row,) = deployed(engine, saved(eight_rows, sample=SAMPLE), tmp_path)
    assert (row.before, row.version, row.check) == (1, 2, "sample of __call__()")
    assert engine.control.versions() == {name: {2: "READY"}}

    address = parse(engine.url, headers=dict(engine.metadata))
    (row,) = rollback("s", engine.repository, lambda runner: address, tell=print, entry=name, to=1)
    assert (row.before, row.version) == (2, 1)
    record = Manifest.read(engine.repository).services["s"]
    assert (served(record), served(record["history"][0])) == ({name: 1}, {name: 2})


HAND = """
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([], pb_utils.TritonError("one")) for request in requests]
"""
HAND_CONFIG = """
name: "hand" backend: "python" max_batch_size: 0
input { name: "x" data_type: TYPE_UINT8 dims: 1 }
output { name: "y" data_type: TYPE_UINT8 dims: 1 }
instance_group { kind: KIND_CPU count: 1 }
"""


def test_copy_that_does_not_load_is_put_back(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "hand" / "1").mkdir(parents=True)
    (tmp_path / "hand" / "config.pbtxt").write_text(HAND_CONFIG)
    service = Service("mixed", runners=[adapter.triton.Runner("hand", str(tmp_path))])
    address = parse(engine.url, headers=dict(engine.metadata))

    def deployed(code: str) -> list[Row]:
        (tmp_path / "hand" / "1" / "model.py").write_text(code)
        planned = plan(service, folder=tmp_path, machine=MACHINE)
        return deploy(service, planned, engine.repository, lambda runner: address, tell=print)

    (row,) = deployed(HAND)
    assert (row.entry, row.before, row.version, row.check) == ("hand", None, 1, "ready, has no sample")
    with pytest.raises(DeploymentError, match=r"says: ValueError: no model\. Version 1 goes on serving\."):
        deployed("raise ValueError('no model')")
    assert (engine.repository / "hand" / "1" / "model.py").read_text() == HAND
    assert engine.control.versions()["hand"] == {1: "READY"}
    with pytest.raises(DeploymentError, match="hand is a copy of an entry that exists already"):
        rollback("mixed", engine.repository, lambda runner: address, tell=print, entry="hand")


# ---- without a Triton -----------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with three versions of one entry."""
    for function in (double, triple, eight_rows):
        write(plan(service_of(saved(function)), folder=tmp_path, machine=MACHINE), tmp_path / "models")
    return tmp_path / "models"


def nowhere(runner: str) -> Address:
    return NOWHERE


def test_manifest_remembers_what_a_service_was(repository: Path) -> None:
    manifest = Manifest.read(repository)
    record = manifest.services["s"]
    assert served(record) == {"deployable.__call__": 3}
    assert [served(before) for before in record["history"]] == [{"deployable.__call__": n} for n in (2, 1)]
    assert len(manifest.models) == 3
    for number in range(4, HISTORY + 10):
        record = {**record, "entries": {"deployable.__call__": {"version": number}}}
        manifest = manifest.with_service("s", {k: v for k, v in record.items() if k != "history"})
    assert len(manifest.services["s"]["history"]) == HISTORY
    same = manifest.with_service("s", {k: v for k, v in manifest.services["s"].items() if k != "history"})
    assert same == manifest


def test_version_is_the_one_that_triton_is_told(repository: Path) -> None:
    folder = repository / "deployable.__call__"
    assert versions_of(Folder(repository), "deployable.__call__") == [1, 2, 3]
    assert "version_policy {\n  specific {\n    versions: 3\n  }\n}" in (folder / "config.pbtxt").read_text()
    for version in (1, 2, 3):
        assert f"versions: {version}\n" in (folder / str(version) / "config.pbtxt").read_text()


def test_version_without_a_configuration_of_its_own_gets_that_of_its_entry(repository: Path) -> None:
    (repository / "deployable.__call__" / "1" / "config.pbtxt").unlink()
    pinned = deployment._pinned(Folder(repository), "deployable.__call__", 1).decode()
    now = (repository / "deployable.__call__" / "config.pbtxt").read_text()
    assert pinned == now.replace("versions: 3", "versions: 1")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"entry": "other"}, "The service 's' has no entry 'other'; it has: deployable.__call__."),
        ({"entry": "deployable.__call__", "to": 9}, "has no version 9 of deployable.__call__; it has: 1, 2, 3."),
        ({}, "The Triton at 127.0.0.1:9 does not tell what it serves"),
    ],
)
def test_rollback_that_cannot_be_says_why(repository: Path, options: dict[str, Any], sentence: str) -> None:
    before = (repository / "manifest.json").read_bytes()
    with pytest.raises(DeploymentError) as caught:
        rollback("s", repository, nowhere, tell=print, **options)
    assert sentence in caught.value.message
    assert (repository / "manifest.json").read_bytes() == before


def test_version_that_was_removed_cannot_be_gone_back_to(repository: Path) -> None:
    Folder(repository).remove("deployable.__call__/2")
    with pytest.raises(DeploymentError, match=r"has no version 2 of deployable\.__call__ any more; it has: 1, 3\."):
        rollback("s", repository, nowhere, tell=print)


@pytest.mark.parametrize(
    ("named", "keep", "expected"),
    [
        ({5}, 0, [1, 2, 3, 4]),
        ({5}, 2, [1, 2]),
        ({5, 4, 3}, 2, [1, 2]),
        ({2}, 1, [1, 3, 4]),
        ({5}, 4, []),
        ({5}, 9, []),
        ({5, 4}, 5, []),
    ],
)
def test_versions_that_are_named_stay_and_as_many_more_as_are_kept(
    named: set[int], keep: int, expected: list[int]
) -> None:
    assert outdated([1, 2, 3, 4, 5], named, keep) == expected


def test_deployment_to_a_triton_that_is_away_changes_nothing(repository: Path, tmp_path: Path) -> None:
    before = sorted(repository.rglob("*"))
    service = service_of(saved(double))
    with pytest.raises(DeploymentError, match=r"so nothing was changed: every one of grpc://127\.0\.0\.1:9 must"):
        deploy(service, plan(service, folder=tmp_path, machine=MACHINE), repository, nowhere, tell=print)
    assert sorted(repository.rglob("*")) == before


def test_control_speaks_tls_with_the_headers_of_its_address(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("triton.internal")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    seen: list[Any] = []

    def index(request: Any, context: Any) -> Any:
        seen.append(dict(context.invocation_metadata()).get("key"))
        rows = [("a", "1", "READY", ""), ("a", "2", "UNAVAILABLE", "unloaded"), ("b", "", "", "")]
        named = [dict(zip(("name", "version", "state", "reason"), row, strict=True)) for row in rows]
        return service_pb2.RepositoryIndexResponse(models=named)

    handler = grpc.unary_unary_rpc_method_handler(
        index,
        service_pb2.RepositoryIndexRequest.FromString,
        service_pb2.RepositoryIndexResponse.SerializeToString,
    )
    server = grpc.server(ThreadPoolExecutor(2))
    service = "inference.GRPCInferenceService"
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {"RepositoryIndex": handler})])
    chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
    credentials = grpc.ssl_server_credentials(
        [(issued.private_key_pem.bytes(), chain)], authority.cert_pem.bytes(), require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    tls = Tls(tmp_path / "ca.pem", tmp_path / "both.pem", server_name="triton.internal")
    try:
        address = parse(f"grpcs://127.0.0.1:{port}", tls, {"key": "secret"})
        (replica,) = address.replicas()
        assert Control.of(address, replica).versions() == {"a": {1: "READY"}}
    finally:
        server.stop(None).wait()
    assert seen == ["secret"]
