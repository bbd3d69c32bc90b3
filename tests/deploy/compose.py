"""Bring compose.yaml up as a person would, look at what runs, break it, and take it down: `make test-compose`.

It needs Docker with Compose, and that the base images of docker/ resolve; the standard library is enough.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
OWN = ROOT / "services" / "compose-check"
PATIENCE_S = 120.0
LOAD_S = 12.0

OWN_FILES = {
    "requirements.txt": "vaderSentiment\n",
    "setup.sh": "#!/bin/sh\nset -e\npython3 -c 'import vaderSentiment'\ndate +%s%N > built.txt\n",
    "greeter/__init__.py": """
from pathlib import Path

import adapter
from adapter.io import JSON, Text

from greeter.scores import Scorer

runner = adapter.Runner(Scorer, name="scorer", runnable_init_params={"built": "./built.txt"})
svc = adapter.Service("greeter", runners=[runner])


@svc.api(input=Text(), output=JSON())
async def score(text: str) -> list[str]:
    return [*await runner.score.async_run(text), Path("built.txt").read_text().strip()]
""",
    "greeter/scores.py": """
import os
from pathlib import Path

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

import adapter


class Scorer(adapter.Runnable):
    def __init__(self, built: str) -> None:
        self.built = Path(built).read_text().strip()
        self.analyzer = SentimentIntensityAnalyzer()

    @adapter.Runnable.method(batchable=False)
    def score(self, text: str) -> list[str]:
        return [str(self.analyzer.polarity_scores(text)["compound"] > 0), str(os.getuid()), self.built]
""",
}

# run inside a container: every process there, with its user and what it may do
PROCESSES = """
import json, pathlib
found = []
for folder in pathlib.Path('/proc').iterdir():
    if folder.name.isdigit():
        try:
            lines = dict(l.split(':', 1) for l in (folder / 'status').read_text().splitlines())
        except OSError:
            continue
        found.append([lines['Name'].strip(), int(lines['Uid'].split()[1]), lines['CapEff'].strip(),
                      lines['NoNewPrivs'].strip()])
print(json.dumps(found))
"""
# inside a container: end a program by the name of its file, as a crash would; 1 is Docker's own, which waits for it
CRASH = """
import os, pathlib, signal, sys
for folder in pathlib.Path('/proc').iterdir():
    if folder.name.isdigit() and folder.name != str(os.getpid()):
        words = (folder / 'cmdline').read_bytes().decode().split('\\0')
        if sys.argv[1] in [os.path.basename(word) for word in words[:2]] and folder.name != '1':
            os.kill(int(folder.name), signal.SIGKILL)
            print('killed', folder.name)
"""
# inside the front: change Triton, as nobody may
INTRUDE = """
import tritonclient.grpc as grpc
client = grpc.InferenceServerClient('triton:8001')
for name, act in [('load', lambda: client.load_model('x', config='{}')), ('index', client.get_model_repository_index),
                  ('shared memory', client.get_system_shared_memory_status)]:
    try:
        act()
    except grpc.InferenceServerException as error:
        print(name, '->', error)
    else:
        print(name, '-> OPEN')
"""
REACH = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3)
except OSError as error:
    print('refused:', error)
else:
    print('OPEN')
"""


class Failed(Exception):
    """What was found is not as it should be."""


def said(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def expect_quietly(truth: object, text: str) -> None:
    if not truth:
        raise Failed(text)


def expect(truth: object, text: str) -> None:
    expect_quietly(truth, text)
    said(f"ok    {text}")


@dataclass(frozen=True)
class Project:
    """One project of Compose with settings of its own, on a free port."""

    name: str
    port: int
    variables: Mapping[str, str] = field(default_factory=dict)

    def compose(self, *words: str, timeout_s: float = 900, check: bool = True) -> str:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("ADAPTER_", "COMPOSE_", "SERVICE"))}
        environment |= {"SERVICE_NAME": self.name, "PORT": str(self.port), **self.variables}
        done = subprocess.run(
            ["docker", "compose", "--progress", "plain", *words],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            end = (done.stdout + done.stderr)[-2000:]
            raise Failed(f"docker compose {' '.join(words)} ended with {done.returncode}:\n{end}")
        return done.stdout

    def inside(self, service: str, program: str, *words: str, index: int = 1, check: bool = True) -> str:
        python = "python3" if service == "triton" else "python"
        run = (python, "-c", program, *words)
        return self.compose("exec", "-T", "--index", str(index), service, *run, check=check)

    def crash(self, service: str, program: str, index: int = 1) -> None:
        """End a program in a container, as the kernel would; the container ends with it, and this call with both."""
        seen = self.inside(service, CRASH, program, index=index, check=False)
        said(f"      {service} {index}: {program} is {seen.strip() or 'killed'}".replace("\n", ", "))

    def containers(self) -> list[dict[str, Any]]:
        ids = self.compose("ps", "-q").split()
        found: list[dict[str, Any]] = json.loads(docker("inspect", *ids))
        return found

    def container(self, service: str) -> dict[str, Any]:
        return next(c for c in self.containers() if service_of(c) == service)

    def post(
        self, path: str, body: bytes, content_type: str, headers: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        every = {"content-type": content_type, **(headers or {})}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{path}", data=body, headers=every)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:  # nobody listens, or the connection was closed
            return 0, str(error)


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout + (done.stderr if words[0] == "logs" else "")


def service_of(container: Mapping[str, Any]) -> str:
    return str(container["Config"]["Labels"]["com.docker.compose.service"])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def until(seen: Callable[[], object], what: str) -> float:
    """Wait for something, and tell how long that took."""
    begun = time.monotonic()
    while not seen():
        if time.monotonic() - begun > PATIENCE_S:
            raise Failed(f"{what} did not happen within {PATIENCE_S:.0f} s")
        time.sleep(0.3)
    return time.monotonic() - begun


# ---- what is looked at ----------------------------------------------------------------------------------------------


def answers_curl(project: Project) -> None:
    """The very curl of the README gets the answer that stands there."""
    found = re.search(r"^\$ (curl .*/classify)\n(.+)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    if found is None:
        raise Failed("README.md has no curl of /classify")
    command = found[1].replace(":3000/", f":{project.port}/")
    answer = subprocess.run([*shlex.split(command), "-sS"], capture_output=True, text=True, timeout=30, check=False)
    expect(answer.stdout.strip() == found[2].strip(), f"{command}  ->  {answer.stdout.strip()}{answer.stderr.strip()}")


def is_confined(project: Project) -> None:
    """Nobody is root, can become root, or can write where the image lies."""
    for container in project.containers():
        name, host = container["Name"].strip("/"), container["HostConfig"]
        number = int(container["Config"]["Labels"]["com.docker.compose.container-number"])
        processes = json.loads(project.inside(service_of(container), PROCESSES, index=number))
        roots = [p for p in processes if p[1] == 0 or int(p[2], 16) or p[3] != "1"]
        users = sorted({p[1] for p in processes})
        expect(not roots, f"{name}: {len(processes)} processes of users {users}, none with a capability {roots or ''}")
        expect(
            host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and "no-new-privileges:true" in host["SecurityOpt"],
            f"{name}: read-only, without capabilities, without new privileges",
        )


def publishes_one_port(project: Project) -> None:
    bindings = {service_of(c): c["HostConfig"]["PortBindings"] or {} for c in project.containers()}
    published = {name: ports for name, ports in bindings.items() if ports}
    expect(
        published == {"proxy": {"3000/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(project.port)}]}},
        f"published: {published}",
    )
    networks = project.container("triton")["NetworkSettings"]["Networks"]
    expect(list(networks) == [f"{project.name}_inside"], f"triton is in {', '.join(networks)} alone")
    address = next(iter(networks.values()))["IPAddress"]
    for host in ("triton", address):
        seen = project.inside("proxy", REACH, host, "8001").strip()
        expect(seen.startswith("refused"), f"from the published network to {host}:8001: {seen}")
    for port in ("8000", "8002"):
        seen = project.inside("api", REACH, "triton", port).strip()
        expect(seen.startswith("refused") == (port == "8000"), f"from the front to triton:{port}: {seen}")
    for line in project.inside("api", INTRUDE).strip().splitlines():
        expect("restricted" in line, f"from the front: {line}")


def scales(project: Project) -> None:
    project.compose("up", "-d", "--wait", "--no-recreate", "--scale", "api=3", "api", "proxy")
    until(lambda: answered_by(project, 12) == 3, "Each of three fronts answering")
    expect(answered_by(project, 12) == 3, "docker compose up --scale api=3: one address, three fronts that answer")


def answered_by(project: Project, requests: int) -> int:
    """How many fronts answer at one address: the log of each names the requests that it had."""
    mark = uuid.uuid4().hex
    for _ in range(requests):
        status, text = project.post("classify", b"[[5.9, 3, 5.1, 1.8]]", "application/json", {"x-request-id": mark})
        expect_quietly(status == 200, f"POST /classify -> {status} {text}")
    fronts = [c["Id"] for c in project.containers() if service_of(c) == "api"]
    return sum(mark in docker("logs", "--tail", "200", front) for front in fronts)


def shrinks(project: Project) -> None:
    """Back to one front while requests come: none of them fails."""
    seen: Counter[int] = Counter()
    end = time.monotonic() + LOAD_S

    def ask() -> None:
        while time.monotonic() < end:
            seen[project.post("classify", b"[[5.9, 3, 5.1, 1.8]]", "application/json")[0]] += 1

    callers = [threading.Thread(target=ask) for _ in range(8)]
    for caller in callers:
        caller.start()
    project.compose("up", "-d", "--no-recreate", "--scale", "api=1", "api")
    for caller in callers:
        caller.join()
    expect(set(seen) == {200}, f"docker compose up --scale api=1 under load: {dict(seen)}")


def deploys(project: Project) -> None:
    """Whoever has the key changes what Triton serves; nobody else does."""
    words = ("adapter", "deploy", "service:svc", "--triton", "grpc://triton:8001", "--repository", "/models")
    seen = project.compose("run", "--rm", "-T", "export", *words).strip().splitlines()
    expect(seen and "iris_clf.predict" in seen[-1], f"docker compose run --rm export {' '.join(words)}: {seen[-1:]}")
    try:
        replace(project, variables={"TRITON_KEY": "wrong"}).compose("run", "--rm", "-T", "export", *words)
    except Failed as failed:
        expect("triton-grpc-protocol-adapter-key" in str(failed), "with another key nothing is changed")
    else:
        raise Failed("A wrong key changed what Triton serves")


def heals(project: Project) -> None:
    """Triton dies, and comes back by itself; no front is started again."""

    def classify() -> tuple[int, str]:
        return project.post("classify", b"[[5.9, 3, 5.1, 1.8]]", "application/json")

    fronts = [c["State"]["Pid"] for c in project.containers() if service_of(c) == "api"]
    project.crash("triton", "tritonserver")
    until(lambda: classify()[0] != 200, "A request failing")
    status, text = classify()
    expect(status == 503 and "error" in json.loads(text), f"meanwhile: {status} {text}")
    took = until(lambda: classify()[0] == 200, "Triton's return")
    count = project.container("triton")["RestartCount"]
    expect(count >= 1, f"triton was started again ({count}); requests are answered after {took:.1f} s")
    until(lambda: project.container("triton")["State"]["Health"]["Status"] == "healthy", "Triton's health")
    expect(
        fronts == [c["State"]["Pid"] for c in project.containers() if service_of(c) == "api"],
        "the fronts are those from before",
    )
    project.crash("api", "adapter", index=2)
    until(lambda: all(classify()[0] == 200 for _ in range(10)), "Ten answers with one front gone")
    expect(True, "one front is killed: the others answer")
    until(lambda: all(c["State"]["Health"]["Status"] == "healthy" for c in project.containers()), "The front's return")
    said("ok    the front is back")


def iris(project: Project) -> None:
    project.compose("up", "-d", "--build", "--wait", timeout_s=1800)
    said(f"ok    docker compose up --build, on port {project.port}")
    answers_curl(project)
    publishes_one_port(project)
    is_confined(project)
    scales(project)
    is_confined(project)
    deploys(project)
    heals(project)
    shrinks(project)
    answers_curl(project)


def own(project: Project) -> None:
    """A service of one's own, as docs/deployment.md tells."""
    project.compose("up", "-d", "--build", "--wait", timeout_s=1800)
    images = set(docker("images", "--format", "{{.Repository}}").split())
    expect({f"{project.name}-api", f"{project.name}-triton"} <= images, f"the images are called {project.name}-…")
    status, text = project.post("score", b"what a wonderful day", "text/plain")
    expect(status == 200, f"POST /score -> {status} {text}")
    positive, user, in_runner, in_front = json.loads(text)
    expect((positive, user) == ("True", "1000"), "requirements.txt was installed, the runner is the user 1000")
    project.compose("restart", "triton", "api")
    until(lambda: project.post("score", b"a bad day", "text/plain")[0] == 200, "An answer after a restart")
    _, _, again_in_runner, again_in_front = json.loads(project.post("score", b"a bad day", "text/plain")[1])
    expect((in_runner, in_front) == (again_in_runner, again_in_front), "setup.sh ran at build, and not at the start")


def main() -> int:
    own_variables = {"SERVICE": "greeter:svc", "SERVICE_DIR": "services/compose-check"}
    rounds: list[tuple[Project, Callable[[Project], None]]] = [
        (Project("adapter-check", free_port(), {"TRITON_KEY": uuid.uuid4().hex}), iris),
        (Project("adapter-check-own", free_port(), own_variables), own),
    ]
    for name, text in OWN_FILES.items():
        (OWN / name).parent.mkdir(parents=True, exist_ok=True)
        (OWN / name).write_text(text)
    try:
        for project, look in rounds:
            try:
                look(project)
            except (Failed, subprocess.SubprocessError) as error:
                print(project.compose("ps", "-a"), project.compose("logs", "--tail", "30"), sep="\n")
                said(f"FAILED {error}")
                return 1
            finally:
                project.compose("down", "--volumes", "--remove-orphans", "--timeout", "20", "--rmi", "all")
                said(f"      {project.name} is taken down")
    finally:
        shutil.rmtree(OWN)
        if not any(OWN.parent.iterdir()):
            OWN.parent.rmdir()
    said("everything is as it should be")
    return 0


if __name__ == "__main__":
    sys.exit(main())
