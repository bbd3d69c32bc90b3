"""The Helm chart: what it renders is valid, closed to the outside, and wired as the fronts read it."""

from __future__ import annotations

import json
import re
from typing import Any

import kubernetes_validate
import promql_parser
import pytest
import yaml

from adapter.layers import load
from adapter.triton.engine import RESTRICTED
from tests.deploy.chart import (
    CHART,
    Helm,
    Manifest,
    RefusedValues,
    container_of,
    everything_in,
    of_kind,
    pod_of,
    selects,
    variables,
)

GROUPS = {"iris_clf": {"replicas": 3, "resources": {"limits": {"nvidia.com/gpu": 1}}}, "text.model": None}
EVERYTHING: dict[str, Any] = {
    "service": "shop.services:svc",
    "images": {"pullSecrets": ["pull"]},
    "repository": {"url": "s3://models/shop", "secretName": "bucket"},
    "front": {
        "config": {"api_server": {"threads": 8}},
        "env": [{"name": "LANG", "value": "C.UTF-8"}],
        "tokensSecretName": "tokens",
        "tlsSecretName": "front-tls",
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "podLabels": {"team": "shop"},
        "podAnnotations": {"note": "1"},
    },
    "triton": {"autoscaling": {"enabled": True}, "args": ["--log-verbose=1"], "podLabels": {"team": "shop"}},
    "runners": GROUPS,
    "tritonKeySecretName": "triton-key",
    "tritonTLS": {"secretName": "triton-tls", "clientSecretName": "front-client-tls"},
    "networkPolicy": {
        "deployers": [{"podSelector": {"matchLabels": {"job": "deploy"}}}],
        "clients": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "gateway"}}}],
    },
    "serviceMonitor": {"enabled": True, "token": {"secretName": "scrape", "key": "token"}, "labels": {"release": "p"}},
    "ingress": {"enabled": True, "className": "nginx", "host": "shop.example", "tlsSecretName": "shop-tls"},
    "serviceAccount": {"annotations": {"role": "reader"}},
}
VALUES: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "everything": EVERYTHING,
    "groups": {"runners": GROUPS},
    "a claim": {"repository": {"volumeClaim": "models", "subPath": "shop"}},
    "read by Triton": {"repository": {"url": "gs://models/shop", "secretName": "bucket", "readBy": "triton"}},
    "little": {
        "front": {"replicas": 1, "autoscaling": {"enabled": False}},
        "networkPolicy": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
    },
}


@pytest.fixture(scope="module")
def rendered(helm: Helm) -> dict[str, list[Manifest]]:
    return {name: helm.render(values) for name, values in VALUES.items()}


def every_pod(rendered: dict[str, list[Manifest]]) -> list[tuple[str, Manifest]]:
    return [
        (f"{name}: {d['metadata']['name']}", pod_of(d))
        for name, manifests in rendered.items()
        for d in of_kind(manifests, "Deployment")
    ]


# ---- valid ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "which"), [("1.25", ["everything"]), ("1.37", list(VALUES))])
def test_every_manifest_is_what_kubernetes_takes(
    rendered: dict[str, list[Manifest]], version: str, which: list[str]
) -> None:
    checked = [m for name in which for m in rendered[name] if m["kind"] != "ServiceMonitor"]
    assert len(checked) > 10 * len(which)
    for manifest in checked:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_service_monitors_name_ports_that_services_have(rendered: dict[str, list[Manifest]]) -> None:
    monitors = of_kind(rendered["everything"], "ServiceMonitor")
    assert [m["metadata"]["name"] for m in monitors] == ["demo-adapter-front", "demo-adapter-triton"]
    for monitor in monitors:
        assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
        assert monitor["metadata"]["labels"]["release"] == "p"
        assert set(monitor["spec"]) == {"selector", "endpoints"}
        services = [
            s
            for s in of_kind(rendered["everything"], "Service")
            if selects(s["metadata"]["labels"], monitor["spec"]["selector"]["matchLabels"])
        ]
        assert services
        (endpoint,) = monitor["spec"]["endpoints"]
        assert set(endpoint) <= {"port", "path", "interval", "authorization", "scheme", "tlsConfig"}
        assert all(endpoint["port"] in [p["name"] for p in s["spec"]["ports"]] for s in services)


def test_chart_passes_helms_own_check(helm: Helm) -> None:
    for values in VALUES.values():
        assert "0 chart(s) failed" in helm.run("lint", "--strict", str(CHART), values=values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"front": {"replica": 3}}, "additional properties 'replica' not allowed"),
        ({"runners": {"a": {"replicas": "3"}}}, "got string, want integer"),
        ({"runners": {"a b": {}}}, "'a b'"),
        ({"runners": {"Iris": {}}}, "'Iris'"),
        ({"repository": {"readBy": "nobody"}}, "'init', 'triton'"),
        ({"repository": {"url": "s3://a", "volumeClaim": "b"}}, "both set: the repository is in one place."),
        ({"runners": {"a_b": {}, "a-b": {}}}, "would both be called demo-adapter-runner-a-b"),
        ({"tritonTLS": {"clientSecretName": "c"}}, "without tritonTLS.secretName"),
        ({"ingress": {"enabled": True}}, "without ingress.host"),
        ({"triton": {"shmSizeLimit": "1 GB"}}, "shmSizeLimit"),
    ],
)
def test_wrong_values_are_refused(helm: Helm, values: dict[str, Any], said: str) -> None:
    with pytest.raises(RefusedValues) as refused:
        helm.render(values)
    assert said in str(refused.value)


def test_every_value_is_described_and_in_the_schema() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())

    def check(value: Any, rule: Any, place: str) -> None:
        rule = schema["definitions"]["triton"] if "$ref" in rule else rule
        if rule.get("additionalProperties") is False:
            assert set(value) == set(rule["properties"]), place
            for key, inner in value.items():
                check(inner, rule["properties"][key], f"{place}.{key}")

    schema["properties"].pop("global")  # of Helm, for charts that contain this one
    resources = {"requests", "limits", "claims"}
    for rule in (schema["properties"]["front"], schema["definitions"]["triton"]):
        assert set(rule["properties"]["resources"].pop("properties")) == resources
        rule["properties"]["resources"].pop("additionalProperties")
    check(values, schema, "values")


# ---- closed ---------------------------------------------------------------------------------------------------------


def test_nobody_is_root_or_can_write_to_the_image(rendered: dict[str, list[Manifest]]) -> None:
    for name, pod in every_pod(rendered):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] >= 1000, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            # what is written goes to memory or disk that is limited
            assert "/tmp" in [m["mountPath"] for m in container["volumeMounts"]], name
            assert container["resources"]["limits"]["memory"], name
        for volume in pod["volumes"]:
            assert "hostPath" not in volume, name
            assert "emptyDir" not in volume or volume["emptyDir"]["sizeLimit"], name


def test_only_the_front_can_be_reached_from_outside(rendered: dict[str, list[Manifest]]) -> None:
    for name, manifests in rendered.items():
        for service in of_kind(manifests, "Service", component="triton"):
            assert service["spec"]["clusterIP"] == "None", name
            assert "type" not in service["spec"], name
        for ingress in of_kind(manifests, "Ingress"):
            (rule,) = ingress["spec"]["rules"]
            assert [p["backend"]["service"]["name"] for p in rule["http"]["paths"]] == ["demo-adapter-front"]
        keys = {key for manifest in manifests for key, _ in everything_in(manifest)}
        assert not keys & {"hostPort", "hostNetwork", "hostPID", "hostIPC", "nodePort", "externalIPs", "privileged"}, (
            name
        )


def test_only_fronts_reach_tritons_grpc_and_only_prometheus_its_metrics(rendered: dict[str, list[Manifest]]) -> None:
    manifests = rendered["groups"]
    policy = next(p for p in of_kind(manifests, "NetworkPolicy") if p["metadata"]["name"].endswith("-triton"))
    chosen = policy["spec"]["podSelector"]["matchLabels"]
    tritons = of_kind(manifests, "Deployment", component="triton")
    (front,) = of_kind(manifests, "Deployment", component="front")
    assert len(tritons) == 3
    for triton in tritons:
        assert selects(triton["spec"]["template"]["metadata"]["labels"], chosen)
    assert not selects(front["spec"]["template"]["metadata"]["labels"], chosen)

    assert policy["spec"]["policyTypes"] == ["Ingress"]
    grpc, metrics = policy["spec"]["ingress"]
    assert grpc["ports"] == [{"port": "grpc"}]
    (who,) = grpc["from"]
    assert list(who) == ["podSelector"]  # of this namespace
    assert selects(front["spec"]["template"]["metadata"]["labels"], who["podSelector"]["matchLabels"])
    assert not any(
        selects(t["spec"]["template"]["metadata"]["labels"], who["podSelector"]["matchLabels"]) for t in tritons
    )
    assert metrics["ports"] == [{"port": "metrics"}]
    assert metrics["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]


def test_secrets_are_named_and_never_written(rendered: dict[str, list[Manifest]]) -> None:
    manifests = rendered["everything"]
    assert not of_kind(manifests, "Secret")
    (front,) = of_kind(manifests, "Deployment", component="front")
    place = variables(container_of(front))["ADAPTER_API_TOKENS_FILE"]
    mount = next(m for m in container_of(front)["volumeMounts"] if m["mountPath"] == place.rpartition("/")[0])
    assert "subPath" not in mount  # which Kubernetes does not keep up to date
    tokens = next(v for v in pod_of(front)["volumes"] if v["name"] == mount["name"])["secret"]
    assert (tokens["secretName"], tokens["items"]) == ("tokens", [{"key": "tokens", "path": place.rpartition("/")[2]}])
    for triton in of_kind(manifests, "Deployment", component="triton"):
        key = next(v for v in container_of(triton)["env"] if v["name"] == "TRITON_KEY")
        assert key["valueFrom"] == {"secretKeyRef": {"name": "triton-key", "key": "key"}}
    # the key that opens Triton, and that of its certificate, are not for the fronts
    assert "triton-key" not in json.dumps(front)
    assert [v["secret"]["secretName"] for v in pod_of(front)["volumes"] if "secret" in v] == [
        "tokens",
        "front-tls",
        "front-client-tls",
    ]


def test_fronts_get_the_authority_alone_where_they_show_no_certificate(helm: Helm) -> None:
    (front,) = of_kind(helm.render({"tritonTLS": {"secretName": "triton-tls"}}), "Deployment", component="front")
    (volume,) = [v for v in pod_of(front)["volumes"] if "secret" in v]
    assert volume["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]
    assert variables(container_of(front))["ADAPTER_TRITON_CA"] == "/etc/triton-tls/ca.crt"
    assert "ADAPTER_TRITON_KEY" not in variables(container_of(front))


# ---- wired ----------------------------------------------------------------------------------------------------------


def test_fronts_read_where_each_runner_is(rendered: dict[str, list[Manifest]]) -> None:
    manifests = rendered["groups"]
    (front,) = of_kind(manifests, "Deployment", component="front")
    settings = load(
        None, {k: v for k, v in variables(container_of(front)).items() if k == "ADAPTER_CONFIG_OPTIONS"}, ()
    )
    urls = {name: runner.url for name, runner in settings.settings.triton.runners.items()}
    assert urls == {
        "iris_clf": "dns:///demo-adapter-runner-iris-clf:8001",
        "text.model": "dns:///demo-adapter-runner-text-model:8001",
    }
    known = {
        f"dns:///{s['metadata']['name']}:{p['port']}"
        for s in of_kind(manifests, "Service", component="triton")
        for p in s["spec"]["ports"]
        if p["name"] == "grpc"
    }
    assert known == {*urls.values(), variables(container_of(front))["ADAPTER_TRITON"]}


def test_a_group_has_its_own_pods_replicas_and_resources(rendered: dict[str, list[Manifest]]) -> None:
    manifests = rendered["groups"]
    tritons = {d["metadata"]["name"]: d for d in of_kind(manifests, "Deployment", component="triton")}
    assert list(tritons) == ["demo-adapter-triton", "demo-adapter-runner-iris-clf", "demo-adapter-runner-text-model"]
    assert [d["spec"]["replicas"] for d in tritons.values()] == [2, 3, 2]
    limits = [container_of(d)["resources"]["limits"] for d in tritons.values()]
    assert limits == [{"memory": "4Gi"}, {"memory": "4Gi", "nvidia.com/gpu": 1}, {"memory": "4Gi"}]
    assert [variables(container_of(d))["RUNNERS"] for d in tritons.values()] == ["", "iris_clf", "text.model"]
    assert [variables(container_of(d))["OTHER_RUNNERS"] for d in tritons.values()] == ["iris_clf text.model", "", ""]
    for name, deployment in tritons.items():
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        for kind in ("Service", "PodDisruptionBudget"):
            chosen = [
                m["metadata"]["name"]
                for m in of_kind(manifests, kind)
                if selects(labels, m["spec"]["selector"].get("matchLabels", m["spec"]["selector"]))
            ]
            assert chosen == [name], kind


def test_every_name_and_label_is_short_enough(helm: Helm) -> None:
    long = {"runners": {"a" * 60: {}, "b_" * 20: {}}, "serviceMonitor": {"enabled": True}}
    text = helm.run("template", "r" * 53, str(CHART), values=long)
    manifests = [m for m in yaml.safe_load_all(text) if m is not None]
    assert max(len(m["metadata"]["name"]) for m in manifests) <= 63
    labels = [v for m in manifests for key, value in everything_in(m) if key == "labels" for v in value.values()]
    assert max(len(label) for label in labels) <= 63


def test_tritons_scale_on_what_waits_and_fronts_on_cpu(rendered: dict[str, list[Manifest]]) -> None:
    scalers = {s["metadata"]["name"]: s["spec"] for s in of_kind(rendered["everything"], "HorizontalPodAutoscaler")}
    names = [d["metadata"]["name"] for d in of_kind(rendered["everything"], "Deployment")]
    assert sorted(scalers) == sorted(names)
    assert all(scaler["scaleTargetRef"]["name"] == name for name, scaler in scalers.items())
    front = scalers.pop("demo-adapter-front")
    assert front["metrics"][0]["resource"]["name"] == "cpu"
    rules = yaml.safe_load((CHART.parent / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    for scaler in scalers.values():
        (metric,) = scaler["metrics"]
        assert metric["pods"]["metric"]["name"] in [rule["name"]["as"] for rule in rules]
    # a Deployment that is scaled has no number of its own, which every `helm upgrade` would go back to
    assert all("replicas" not in d["spec"] for d in of_kind(rendered["everything"], "Deployment"))


def test_metric_of_the_autoscaler_is_made_of_triton_s() -> None:
    (rule,) = yaml.safe_load((CHART.parent / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    query = rule["metricsQuery"].replace("<<.LabelMatchers>>", 'pod=~"a|b"').replace("<<.GroupBy>>", "pod")
    assert "<<" not in query
    promql_parser.parse(query)
    promql_parser.parse(rule["seriesQuery"])
    # both count time for each request, so their ratio does not change with the size of batches
    assert re.findall(r"nv_\w+", query) == ["nv_inference_queue_duration_us", "nv_inference_compute_infer_duration_us"]


def test_pods_have_the_time_to_end(rendered: dict[str, list[Manifest]]) -> None:
    for name, manifests in rendered.items():
        for deployment in of_kind(manifests, "Deployment"):
            pod, container = pod_of(deployment), container_of(deployment)
            sleep = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
            told = {**variables(container), **dict(a.split("=") for a in container.get("args", []) if "=" in a)}
            work = float(told.get("ADAPTER_TIMEOUT") or told["--exit-timeout-secs"])
            assert pod["terminationGracePeriodSeconds"] >= sleep + work + 10, name


def test_triton_has_shared_memory_of_its_own(rendered: dict[str, list[Manifest]]) -> None:
    for triton in of_kind(rendered["everything"], "Deployment", component="triton"):
        mounts = {m["mountPath"]: m["name"] for m in container_of(triton)["volumeMounts"]}
        volume = next(v for v in pod_of(triton)["volumes"] if v["name"] == mounts["/dev/shm"])
        assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Gi"}


@pytest.mark.parametrize(
    ("which", "triton", "front"),
    [
        ("the defaults", ["adapter", "export", "service:svc", "--repository", "/models"], "adapter"),
        ("everything", ["python", "/etc/adapter/fetch.py", "s3://models/shop", "/models", "all"], "manifest"),
        ("read by Triton", ["python", "/etc/adapter/fetch.py", "gs://models/shop", "/models", "manifest"], "manifest"),
        ("a claim", None, None),
    ],
)
def test_repository_comes_from_where_it_is_said(
    rendered: dict[str, list[Manifest]], which: str, triton: list[str] | None, front: str | None
) -> None:
    manifests = rendered[which]
    for deployment in of_kind(manifests, "Deployment"):
        component = deployment["metadata"]["labels"]["app.kubernetes.io/component"]
        pod = pod_of(deployment)
        (mount,) = [m for m in container_of(deployment)["volumeMounts"] if m["mountPath"] == "/models"]
        assert mount["readOnly"] is True
        commands = [c["command"] for c in pod.get("initContainers", [])]
        if triton is None:
            assert commands == []
            assert mount["subPath"] == "shop"
            volume = next(v for v in pod["volumes"] if v["name"] == "models")
            assert volume["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
        elif component == "triton":
            assert commands == [triton]
        else:
            assert commands in ([triton], [[*triton[:-1], front]])


# ---- KServe ---------------------------------------------------------------------------------------------------------


def test_kserve_runs_the_repository_alone() -> None:
    runtime, service = yaml.safe_load_all((CHART.parents[1] / "kserve" / "inferenceservice.yaml").read_text())
    assert (runtime["apiVersion"], runtime["kind"]) == ("serving.kserve.io/v1alpha1", "ServingRuntime")
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"] in runtime["spec"]["supportedModelFormats"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    (container,) = runtime["spec"]["containers"]
    assert container["name"] == "kserve-container"  # the one that KServe gives the repository and the ports to
    pod = {key: runtime["spec"][key] for key in ("containers", "volumes")}
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "runtime"}, "spec": pod}, "1.35", strict=True
    )
    command = container["args"][-1]
    assert "--model-repository=/mnt/models" in command
    closed = re.search(r"closed=(\S+);", command)
    assert closed is not None
    assert set(RESTRICTED) == set(closed[1].split(","))
    for port in ("http", "grpc"):
        assert f"--{'http-restricted-api' if port == 'http' else 'grpc-restricted-protocol'}=$closed:" in command
