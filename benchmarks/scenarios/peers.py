"""The iris service as others serve it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.comparison import Comparison, Contender, Effort
from benchmarks.findings import Findings, Ratio
from benchmarks.peers.environment import python_of, versions
from benchmarks.scenarios.small import CLASSIFIED
from benchmarks.server import HOST, free_port
from benchmarks.stage import IRIS, ROOT, Stage

_FOLDER = ROOT / "benchmarks" / "peers"


def contenders(stage: Stage) -> Sequence[Contender]:
    """Ours, BentoML and LitServe, with one process each for HTTP and one for the model."""
    stage.train_iris()
    ours = stage.adapter("service:svc", working_dir=IRIS)
    return [
        Contender("ours", "adapter, async", ours, "/classify_async", CLASSIFIED),
        Contender("ours_sync", "adapter, sync", ours, "/classify", CLASSIFIED),
        *_bentoml(stage),
        *(_litserve(stage, kind) for kind in ("sync", "async", "batched")),
    ]


def _bentoml(stage: Stage) -> list[Contender]:
    python = python_of("bentoml")
    env = {
        **stage.environment,
        "BENTOML_HOME": str(stage.folder / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "PATH": f"{python.parent}:{stage.environment['PATH']}",
    }
    stage.run([str(python), "bentoml_train.py"], _FOLDER, env)
    port = free_port()
    arguments = [str(python), "-m", "bentoml", "serve", "bentoml_service:svc", f"--host={HOST}", f"--port={port}"]
    arguments += ["--api-workers=1", f"--working-dir={_FOLDER}"]
    server = stage.start("bentoml serve", arguments, port=port, ready="/readyz", env=env)
    return [
        Contender("bentoml", "BentoML, async", server, "/classify_async", CLASSIFIED),
        Contender("bentoml_sync", "BentoML, sync", server, "/classify", CLASSIFIED),
    ]


def _litserve(stage: Stage, kind: str) -> Contender:
    port = free_port()
    arguments = [str(python_of("litserve")), "litserve_server.py", str(port), kind]
    server = stage.start(f"litserve, {kind}", arguments, port=port, ready="/health", folder=_FOLDER)
    return Contender(f"litserve_{kind}", f"LitServe, {kind}", server, "/predict", CLASSIFIED)


@dataclass(frozen=True)
class Peers(Comparison):
    """A comparison that names what is installed in the other environments, too."""

    def run(self, stage: Stage, effort: Effort, machine: Mapping[str, str]) -> Findings:
        """Measure, as any comparison."""
        findings = super().run(stage, effort, machine)
        bentoml = versions(python_of("bentoml"), "bentoml", "starlette", "uvicorn", "uvloop", "numpy", "scikit-learn")
        litserve = versions(python_of("litserve"), "litserve", "fastapi", "uvicorn", "uvloop", "numpy", "scikit-learn")
        return replace(findings, notes=(*findings.notes, f"{bentoml}.", f"{litserve}."))


SCENARIOS = (
    Peers(
        "peers",
        "The iris service in other servers",
        contenders,
        (
            Ratio("ours", "bentoml", aim=20),
            Ratio("ours_sync", "bentoml_sync"),
            Ratio("ours", "litserve_async", aim=10),
            Ratio("ours_sync", "litserve_sync", aim=10),
            Ratio("ours", "litserve_batched"),
        ),
        connections=(64,),
        notes=(
            "Each with its defaults, one process for HTTP and one for the model; LitServe batched gathers up to 64 "
            "requests for at most 2 ms. BentoML has uvloop and httptools, which it does not ask for itself.",
        ),
        by_default=False,
        one_at_a_time=True,  # LitServe's batching asks for requests all the time
    ),
)
