from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from adapter.exceptions import ConfigException
from adapter.layers import OPTIONS, RANK_FLAG, RANK_VARIABLE, Given, Loaded, find_file, load
from adapter.layers import setting as one
from adapter.settings import Batching, MethodBatching, RunnerResources, RunnerSettings, Settings, flat

Keys = tuple[str, ...]


def read(
    text: str, folder: Path, environ: Mapping[str, str] | None = None, flags: Mapping[str, Any] | None = None
) -> Loaded:
    file = folder / "adapter.yaml"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    found = [one(tuple(k.split(".")), v, "--flag", RANK_FLAG) for k, v in (flags or {}).items()]
    return load(file, environ or {}, found)


def refusal(text: str, folder: Path, environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigException) as caught:
        read(text, folder, environ)
    return caught.value.message.replace(f"{folder}/", "")


def test_nothing_gives_the_defaults() -> None:
    assert load(None, {}) == Loaded(Settings(), {})


@pytest.mark.parametrize(
    "text", ["", "# only a comment", "api_server:\n", "runners:\n", "api_server:\n  http:\n", "{}"]
)
def test_file_that_says_nothing_gives_the_defaults(text: str, tmp_path: Path) -> None:
    assert read(text, tmp_path).settings == Settings()


# ---- layers ---------------------------------------------------------------------------------------------------------


def test_stronger_layers_win_and_each_value_knows_where_it_is_from(tmp_path: Path) -> None:
    text = """
api_server:
  workers: 2
  backlog: 10
  traffic: {timeout: 1, max_concurrency: 7}
"""
    environ = {OPTIONS: "api_server.backlog=20 api_server.traffic.timeout=2 api_server.traffic.max_concurrency=~"}
    variable = one(("api_server", "traffic", "timeout"), 3, "environment ADAPTER_TIMEOUT", RANK_VARIABLE)
    flag = one(("api_server", "http", "port"), 80, "--port", RANK_FLAG)
    file = tmp_path / "adapter.yaml"
    file.write_text(text)
    found = load(file, environ, [flag, variable])
    server = found.settings.api_server
    assert (server.workers, server.backlog, server.http.port) == (2, 20, 80)
    assert (server.traffic.timeout, server.traffic.max_concurrency) == (3.0, None)
    places = {
        ("api_server", "workers"): f"{file}:3",
        ("api_server", "backlog"): f"environment {OPTIONS}",
        ("api_server", "traffic", "timeout"): "environment ADAPTER_TIMEOUT",
        ("api_server", "traffic", "max_concurrency"): f"environment {OPTIONS}",
        ("api_server", "http", "port"): "--port",
        ("api_server", "http", "host"): "default",
    }
    assert {keys: found.source(keys) for keys in places} == places


def test_file_is_the_one_named_else_the_one_of_the_working_directory(tmp_path: Path) -> None:
    assert find_file(None, tmp_path) is None
    (tmp_path / "adapter.yaml").touch()
    assert find_file(None, tmp_path) == tmp_path / "adapter.yaml"
    assert find_file(tmp_path / "other.yaml", tmp_path) == tmp_path / "other.yaml"


def test_paths_of_a_file_begin_at_its_folder_and_others_at_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = read("api_server: {ssl: {certfile: a.pem}}", tmp_path, {OPTIONS: "triton.repository=../b"})
    assert found.settings.api_server.ssl.certfile == tmp_path / "a.pem"
    assert found.settings.triton.repository == tmp_path / "b"


EXPANDED: list[tuple[str, dict[str, str], Any]] = [
    ("port: ${PORT}", {"PORT": "80"}, 80),
    ("port: ${PORT:-5000}", {}, 5000),
    ("port: ${PORT:-5000}", {"PORT": ""}, 5000),
    ("host: ${A}.${B:-org}", {"A": "me"}, "me.org"),
    ("host: '${A}'", {"A": "5"}, "5"),
    ("host: ${A}", {"A": "5"}, "5"),
    ("host: ${A}", {"A": "null"}, "null"),
    ('port: "${PORT}"', {"PORT": "80"}, 80),
    ("host: $${A}", {"A": "5"}, "${A}"),
    ("host: a$b", {}, "a$b"),
    ("host: ${A:-a:b}", {}, "a:b"),
]


@pytest.mark.parametrize(("line", "environ", "expected"), EXPANDED)
def test_variables_are_expanded(line: str, environ: dict[str, str], expected: Any, tmp_path: Path) -> None:
    found = read(f"api_server:\n  http:\n    {line}", tmp_path, environ)
    key = line.partition(":")[0]
    assert flat(found.settings)[("api_server", "http", key)] == expected
    named = " with PORT" if environ.get("PORT") else " with A" if "A" in environ and "$$" not in line else ""
    assert found.source(("api_server", "http", key)) == f"{tmp_path}/adapter.yaml:3{named}"


def test_anchors_and_merge_keys_can_be_used(tmp_path: Path) -> None:
    text = "runners:\n  a: &a {cpu: 2, max_batch_size: 3}\n  b: {<<: *a, cpu: 4}\n  c: *a\n"
    named = read(text, tmp_path).settings.runners.named
    assert named["b"] == RunnerSettings(resources=RunnerResources(cpu=4.0), batching=Batching(max_batch_size=3))
    assert named["c"] == named["a"]


# ---- runners --------------------------------------------------------------------------------------------------------

KEYED = """
runners:
  batching: {max_batch_size: 7}
  iris_clf:
    resources: {cpu: 4, nvidia.com/gpu: 0}
    batching: {max_batch_size: 20}
  my_custom_runner:
    resources: {cpu: 2, nvidia.com/gpu: 2}
    runnable_method_configs:
      predict: {max_batch_size: 10, max_latency_ms: 500}
"""
LISTED = """
runners:
  - name: iris_clf
    cpu: 4
    nvidia_gpu: 0  # requesting 0 GPU
    max_batch_size: 20
  - name: my_custom_runner
    cpu: 2
    nvidia_gpu: 2  # requesting 2 GPUs
    runnable_method_configs:
      - name: "predict"
        max_batch_size: 10
        max_latency_ms: 500
"""


def test_both_shapes_of_runners_say_the_same(tmp_path: Path) -> None:
    keyed, listed = read(KEYED, tmp_path), read(LISTED, tmp_path)
    assert keyed.settings.runners.named == listed.settings.runners.named
    assert listed.settings.runners.named == {
        "iris_clf": RunnerSettings(
            resources=RunnerResources(cpu=4.0, nvidia_gpu=0.0), batching=Batching(max_batch_size=20)
        ),
        "my_custom_runner": RunnerSettings(
            resources=RunnerResources(cpu=2.0, nvidia_gpu=2.0),
            runnable_method_configs={"predict": MethodBatching(max_batch_size=10, max_latency_ms=500.0)},
        ),
    }
    assert keyed.settings.runners.defaults == RunnerSettings(batching=Batching(max_batch_size=7))
    assert keyed.source(("batching", "max_batch_size"), "iris_clf") == f"{tmp_path}/adapter.yaml:6"


def test_environment_beats_what_the_file_says_of_one_runner(tmp_path: Path) -> None:
    text = """
runners:
  a:
    batching: {enabled: true, max_batch_size: 4}
    runnable_method_configs: {f: {max_batch_size: 5, max_latency_ms: 9}}
"""
    options = '"runners.a".batching.max_batch_size=6 runners.batching.enabled=false runners.b.max_latency_ms=3'
    runners = read(text, tmp_path, {OPTIONS: options}).settings.runners
    # what is said of the whole runner takes the place of what the weaker file says of its method, and of nothing else
    assert runners.named["a"].batching == Batching(6, None, enabled=False)
    assert runners.named["a"].runnable_method_configs == {"f": MethodBatching(None, 9.0)}
    assert runners.named["b"].batching == Batching(None, 3.0, enabled=False)
    assert runners.every.batching == Batching(enabled=False)
    assert runners.defaults == RunnerSettings()


def test_within_the_environment_what_names_a_runner_is_stronger(tmp_path: Path) -> None:
    options = "runners.a.batching.enabled=true runners.batching.enabled=false"
    assert read("", tmp_path, {OPTIONS: options}).settings.runners.named["a"].batching.enabled is True


OPTION_KEYS: list[tuple[str, str, Keys, Any]] = [
    ("runners.a.resources.cpu=500m", "a", ("resources", "cpu"), 0.5),
    ('runners.a.resources."nvidia.com/gpu"=[0, 3]', "a", ("resources", "nvidia.com/gpu"), (0, 3)),
    ('"runners.a".nvidia_gpu=1', "a", ("resources", "nvidia.com/gpu"), 1.0),
    ('runners."v1.5".batching.enabled=false', "v1.5", ("batching", "enabled"), False),
    ("runners.a.resources.nvidia.com/gpu=2", "a", ("resources", "nvidia.com/gpu"), 2.0),
    ("runners.a.resources.cpu=2", "a", ("resources", "cpu"), 2.0),
    ("runners.A.resources=system", "a", ("resources", "cpu"), "system"),
    ("runners.a.method_configs.f.max_batch_size=3", "a", ("runnable_method_configs", "f", "max_batch_size"), 3),
]


@pytest.mark.parametrize(("option", "runner", "keys", "value"), OPTION_KEYS)
def test_option_of_the_environment_names_a_setting_of_a_runner(
    option: str, runner: str, keys: Keys, value: Any
) -> None:
    assert flat(load(None, {OPTIONS: option}).settings.runners.named[runner])[keys] == value


def test_option_of_the_environment_can_be_a_text_that_is_no_yaml() -> None:
    options = "api_server.http.cors.access_control_allow_origins=* api_server.http.host=&a:${b api_server.http.port=5"
    http = load(None, {OPTIONS: options}).settings.api_server.http
    assert (http.cors.access_control_allow_origins, http.host, http.port) == (("*",), "&a:${b", 5)


def test_option_of_the_environment_can_be_a_text_that_looks_like_a_number() -> None:
    options = "api_server.ssl.keyfile_password=12345 api_server.ssl.certfile=1 api_server.http.host=0"
    server = load(None, {OPTIONS: options}).settings.api_server
    assert load(None, {OPTIONS: "triton.url=~"}).settings.triton.url is None
    assert (server.ssl.keyfile_password, server.ssl.certfile, server.http.host) == ("12345", Path("1").absolute(), "0")


# ---- what is refused ------------------------------------------------------------------------------------------------

REFUSED = [
    ("api_server: {prt: 1}", "api_server.prt (adapter.yaml:1) is no setting: did you mean api_server.http.port?"),
    ("api_server:\n  treads: 1", "api_server.treads (adapter.yaml:2) is no setting: did you mean threads?"),
    ("api_serve: {}", "did you mean api_server?"),
    ("runner: []", "did you mean runners?"),
    (
        "zzz: 1",
        "zzz (adapter.yaml:1) is no setting: there are api_server, runners, services, tracing, triton, version.",
    ),
    (
        "api_server: {http: {port: x}}",
        "api_server.http.port is 'x' (adapter.yaml:1), but can only be a whole number",
    ),
    ("api_server: {workers: '2'}", "api_server.workers is '2' (adapter.yaml:1), but can only be a whole number from 1"),
    ("api_server: {http: {port: ~}}", "api_server.http.port is null"),
    ("api_server: 5", "api_server is 5 (adapter.yaml:1), but is a section with keys such as workers"),
    ("- 1", "the configuration is [1] (adapter.yaml:1), but is a section"),
    ("version: 2", "version is 2"),
    ("api_server:\n  port: 1", "api_server.port (adapter.yaml:2) is no setting here: it is api_server.http.port."),
    ("api_server: {timeout: 1}", "it is api_server.traffic.timeout."),
    ("api_server: {cors: {enabled: true}}", "it is api_server.http.cors."),
    ("runners: {timeout: 1}", "it is runners.traffic.timeout."),
    ("runners: {x: {timeout: 1}}", "it is runners.traffic.timeout."),
    ("tracing: {type: otlp}", "it is tracing.exporter_type."),
    ("runners: {logging: {access: {}}}", "no setting here: api_server.logging holds for runners"),
    ("runners: {x: {metrics: {}}}", "no setting here: api_server.metrics holds for runners"),
    ("runners: {x: {traffic: {max_concurrency: 1}}}", "no setting here: calls wait for their turn"),
    ("api_server: {runner_probe: {enabled: true}}", "no setting here: /readyz"),
    ("api_server: {max_runner_connections: 16}", "no setting here: one connection to Triton"),
    ("monitoring: {enabled: true}", "no setting here: adapter does not log"),
    ("tracing: {jaeger: {}}", "set tracing.exporter_type to otlp"),
    ("tracing: {exporter_type: jaeger}", "can only be one of otlp, console"),
    ("runners: {batchng: 1}", "did you mean batching?"),
    ("runners: {x: {batchng: {}}}", "runners.x.batchng (adapter.yaml:1) is no setting: did you mean batching?"),
    ("runners: {x: 5}", "runners.x (adapter.yaml:1) is no setting"),
    ("runners: 5", "runners is 5"),
    ("runners: [5]", "each of the runners is 5"),
    ("runners: [{cpu: 1}]", "A runner of the list (adapter.yaml:1) has no `name`."),
    ("runners: [{name: [a]}]", "has no `name`."),
    ("runners: [{name: a}, {name: A}]", "The runner 'A' is in the list a second time (adapter.yaml:1)."),
    ("runners: {runnable_method_configs: {f: {}}}", "which belong to one runner"),
    ("runners: {a: {runnable_method_configs: [{max_batch_size: 1}]}}", "has no one `method_name`."),
    ("runners: {a: {runnable_method_configs: {f: {batchable: true}}}}", "runnable_method_configs.f.batchable"),
    ("runners: {a: {resources: all}}", "runners.a.resources is 'all'"),
    ("runners: {a: {resources: {amd.com/gpu: 1}}}", "runners.a.resources.amd.com/gpu (adapter.yaml:1) is no setting"),
    ("runners: {a: {max_batch_size: 0}}", "runners.a.batching.max_batch_size is 0"),
    ("api_server: {ssl: {keyfile: a}}", "api_server.ssl.keyfile (adapter.yaml:1) has no effect without a certificate"),
    ("api_server: {ssl: {enabled: true}}", "set api_server.ssl.certfile."),
    ("api_server: {ssl: {certfile: a, cert_reqs: 2}}", "api_server.ssl.ca_certs"),
    ("api_server: {http: {cors: {enabled: true}}}", "has no effect without an origin that is allowed"),
    ("api_server: {metrics: {duration: {min: 1, max: 2}}}", "min, max and factor, which go together"),
    ("api_server: {metrics: {duration: {min: 3, max: 2, factor: 2}}}", "min below max"),
    ("api_server: {metrics: {duration: {min: 1, max: 2, factor: 2, buckets: [1]}}}", "leave out one of them"),
    ("triton: {url: http://host}", "triton.url is 'http://host' (adapter.yaml:1), but can only be the address"),
    ("triton: {url: grpc://host}", "grpcs://host:8001 or grpc://host:8001, or null for an engine of its own."),
    ("triton: {url: host:port}", "triton.url is 'host:port'"),
    ("triton: {runners: {x: {url: host}}}", "triton.runners.x.url is 'host' (adapter.yaml:1), but can only be"),
    ("triton: {runners: {x: {address: h:1}}}", "triton.runners.x.address (adapter.yaml:1) is no setting"),
    ("triton: {runners: {x: h:1}}", "triton.runners.x is 'h:1' (adapter.yaml:1), but is a section with keys"),
    ("triton: {runners: [x]}", "triton.runners is ['x'] (adapter.yaml:1), but is a section"),
    ("triton: {headers: {Key: hush}}", "triton.headers is a value that is not shown (adapter.yaml:1)"),
    ("triton: {tls: {cert: x}}", "triton.tls.cert (adapter.yaml:1) is no setting: did you mean"),
    ("triton: {manifest: m.json}", "triton.manifest (adapter.yaml:1) goes with triton.url"),
    ("a: 1\na: 2", "adapter.yaml:2 has the key 'a' for a second time."),
    ("? [a]\n: 1", "adapter.yaml:1 has a key that is not a text."),
    ("<<: {[1]: 2}", "adapter.yaml:1 has a key that is not a text."),
    ("a: &a [*a]", "adapter.yaml:1 contains itself."),
    ("a: {b: ${A:-1}}", "adapter.yaml:1 is not valid YAML: expected ',' or '}', but got '{': a `${…}` between braces "),
    ("[1,2", "adapter.yaml:1 is not valid YAML: expected ',' or ']'"),
    ("a: !!python/object:os.system x", "adapter.yaml:1 is not valid YAML: could not determine a constructor"),
    ("a: 1\n---\nb: 2", "is not valid YAML"),
    ("a: 2020-13-45", "adapter.yaml has a value that cannot be read"),
    ("[" * 5000, "adapter.yaml is nested too deeply."),
    ("a: ${", "adapter.yaml:1 has a `${` that begins no variable"),
    ("a: ${A-b}", "adapter.yaml:1 has a `${` that begins no variable"),
    ("a: ${NOT_SET}", "adapter.yaml:1 names the variable NOT_SET, which is not set"),
]


@pytest.mark.parametrize(("text", "words"), REFUSED, ids=[text[:40] for text, _ in REFUSED])
def test_wrong_file_is_refused_with_its_place_and_the_way_out(text: str, words: str, tmp_path: Path) -> None:
    message = refusal(text, tmp_path)
    assert words in message
    assert "\n" not in message
    assert message.endswith((".", "?"))


def test_secret_is_not_in_the_sentence_that_refuses_it(tmp_path: Path) -> None:
    message = refusal("api_server: {ssl: {keyfile_password: [hush]}}", tmp_path)
    assert message.startswith("api_server.ssl.keyfile_password is a value that is not shown (adapter.yaml:1)")
    assert "hush" not in message


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("x", f"{OPTIONS} cannot be read from 'x' on"),
        ("api_server.backlog=1 x", "from 'x' on"),
        ("=", "cannot be read from"),
        ("api_server.backlog=[", "cannot be read from"),
        ("api_server.http=1", "api_server.http is 1"),
        ('api_server.backlog="5"', "api_server.backlog is '5' (environment ADAPTER_CONFIG_OPTIONS)"),
        ("api_server.prot=1", "is no setting"),
        ("runners.x=1", "is no setting"),
        ("api_server.http.cors.access_control_allow_origins=[*b]", "has a value that cannot be read"),
        ("api_server.backlog=2020-13-45", "api_server.backlog is '2020-13-45'"),
        ("api_server.ssl.keyfile_password=[hush", "cannot be read from 'api_server.s...file_password' on"),
    ],
)
def test_wrong_option_of_the_environment_is_refused(option: str, words: str) -> None:
    with pytest.raises(ConfigException) as caught:
        load(None, {OPTIONS: option})
    assert words in caught.value.message


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for file, words in [
        (tmp_path / "none.yaml", "There is no file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "binary.yaml", "it is not text in UTF-8"),
    ]:
        with pytest.raises(ConfigException, match=words) as caught:
            load(file, {})
        assert str(file) in caught.value.message


def test_aliases_of_aliases_take_no_time(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 60))]
    assert "a0 (adapter.yaml:1) is no setting" in refusal("\n".join(lines), tmp_path)


# ---- whatever a file holds ------------------------------------------------------------------------------------------

WORDS = sorted({key for keys in flat(Settings()) for key in keys} | {"runners", "name", "cpu", "batching", "resources"})
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.dates()
TREES = st.recursive(
    LEAVES,
    lambda below: (
        st.lists(below, max_size=4) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=4), below, max_size=5)
    ),
    max_leaves=25,
)
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def sentence_of(load: Callable[[], Loaded]) -> str:
    """The sentence that refuses, "" where nothing is refused."""
    try:
        found = load()
    except ConfigException as error:
        return error.message
    assert Settings.from_json(found.settings.to_json()) == found.settings
    return ""


@QUICK
@given(text=st.text(st.characters(exclude_categories=[])) | st.text("{}[]&*:-#'\"|>%@!?<$, \n\tab1", max_size=40))
@example(text="\ud800")
@example(text="\x00")
def test_any_text_is_read_or_refused_with_a_sentence(text: str, tmp_path: Path) -> None:
    assert sentence_of(lambda: read(text, tmp_path)).isprintable()


@QUICK
@given(tree=TREES, leading=st.lists(st.sampled_from(["api_server", "runners", "http", "ssl"]), max_size=2))
def test_any_tree_is_read_or_refused_with_a_sentence(tree: Any, leading: list[str], tmp_path: Path) -> None:
    for key in leading:
        tree = {key: tree}
    assert sentence_of(lambda: read(yaml.safe_dump(tree, allow_unicode=True), tmp_path)).isprintable()


@QUICK
@given(text=st.text() | st.text("runesapi_v.=\"'[] 1x", max_size=40))
def test_any_option_of_the_environment_is_read_or_refused(text: str) -> None:
    assert sentence_of(lambda: load(None, {OPTIONS: text})).isprintable()


def test_given_is_checked_as_everything_else() -> None:
    assert one(("api_server", "backlog"), 5, "--backlog", RANK_FLAG) == Given(
        ("api_server", "backlog"), 5, "--backlog", RANK_FLAG
    )
    with pytest.raises(ConfigException, match=r"api_server\.backlog is 0 \(--backlog\)"):
        one(("api_server", "backlog"), 0, "--backlog", RANK_FLAG)
