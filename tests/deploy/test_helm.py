"""What Helm installs of k8s/chart: what Kustomize builds of k8s/base and its components, and what values change."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from scripts.helm import chart as helm_chart
from scripts.helm.chart import CHART, SWITCHES, built
from service.settings import Settings
from tests.deploy.helm import Helm, Refused, helm
from tests.deploy.test_kustomize import (
    KUBERNETES,
    NETWORK,
    denied,
    is_kubernetes_own,
    reach_what_they_need_and_nothing_else,
    template,
)

Resources = dict[tuple[str, str], dict]
Install = Callable[..., Resources]
STORE = {"enabled": True, "store": "s3://hotswap/adapters"}
VALUES: dict[str, dict[str, Any]] = {
    "jobs": {"jobs": {"enabled": True}},
    "jobs-volume": {"jobs": {"enabled": True, "volume": {"enabled": True}}},
    "train": {"train": {"enabled": True}},
    "retrain": {"retrain": {"enabled": True}},
    "s3": {"s3": STORE},
    "base-from-hub": {"baseModel": {"from": "hub", "model": "Qwen/Qwen3-0.6B"}},
    "base-from-image": {"baseModel": {"from": "image", "image": "registry.example.com/base:1"}},
    "base-from-s3": {"baseModel": {"from": "s3", "uri": "s3://hotswap/base"}},
    "envoy": {"router": "envoy"},
    "nginx": {"router": "nginx"},
    "gateway": {"gateway": {"enabled": True}},
    "operator": {"monitoring": {"operator": True}},
    "external-secret": {"externalSecret": {"enabled": True}},
    "hpa": {"hpa": {"enabled": True}},
    "keda": {"keda": {"enabled": True}},
    "spread": {"spread": {"enabled": True}},
    "gpu": {"gpu": {"enabled": True}},
}
TRAINERS = "jobs+train+retrain"
SHARED = f"{TRAINERS}+jobs-volume"
ALL = [f"{SHARED}+s3+base-from-s3+envoy+gateway+operator+external-secret+hpa+spread+gpu"]
ALL += [f"{TRAINERS}+base-from-image+nginx+gateway+operator+keda+gpu"]
CASES = ["", *(name for name in VALUES if name not in ("spread", "jobs-volume")), "s3+hpa+spread", *ALL]
CASES += [f"{TRAINERS}+{added}" for added in ("base-from-hub", "base-from-s3", "external-secret", "hpa")]
CASES += [f"{SHARED}+s3", f"{SHARED}+gpu+s3"]


@pytest.fixture(scope="module")
def program() -> Iterator[Helm]:
    with helm() as program:
        yield program


@pytest.fixture(scope="module")
def install(program: Helm) -> Install:
    """Install the chart with values; each once."""

    @cache
    def once(values: str, name: str) -> Resources:
        resources, _ = program.install(CHART, json.loads(values), name)
        return {(each["kind"], each["metadata"]["name"]): each for each in resources}

    return lambda name="hotswap", **values: once(json.dumps(values), name)


def switched(case: str) -> dict[str, Any]:
    return {key: value for name in case.split("+") if name for key, value in VALUES[name].items()}


def plain(tree: Any) -> Any:
    """Return it without what is Helm's: labels of the release, checksums; what has names may be in any order."""
    if isinstance(tree, list):
        return sorted(
            map(plain, tree), key=lambda each: json.dumps(each, sort_keys=True) if isinstance(each, dict) else ""
        )
    if not isinstance(tree, dict):
        return tree
    helms = re.compile(r"checksum/.+|helm\.sh/chart|app\.kubernetes\.io/(instance|managed-by)")
    kept = {key: plain(value) for key, value in tree.items() if not helms.fullmatch(key)}
    return {key: value for key, value in kept.items() if value or key not in ("labels", "annotations")}


def the_same(installed: Resources, wanted: Resources) -> None:
    """Hold one against the other, resource by resource."""
    found = {
        (kind, re.sub("^(hotswap-train)-[0-9a-f]{8}$", r"\1", name)): each for (kind, name), each in installed.items()
    }
    assert sorted(found) == sorted(wanted)
    for key, resource in wanted.items():
        found[key]["metadata"]["name"] = key[1]
        if key[0] == "RoleBinding":
            assert {subject.pop("namespace") for subject in found[key]["subjects"]} == {"models"}
        if key[0] == "ScaledObject":
            (trigger,) = found[key]["spec"]["triggers"]
            trigger["metadata"]["query"] = trigger["metadata"]["query"].replace('"models"', '"hotswap"')
        assert plain(found[key]) == plain(resource), key


def test_what_is_committed_is_what_kustomize_builds() -> None:
    for path, content in helm_chart.files().items():
        assert path.read_text() == content, f"{path.name}: run make chart"


def test_the_charts_version_is_the_projects() -> None:
    project = tomllib.loads((CHART.parents[1] / "pyproject.toml").read_text())["project"]
    lines = (CHART / "Chart.yaml").read_text().splitlines()
    assert f"version: {project['version']}" in lines
    assert f'appVersion: "{project["version"]}"' in lines


def test_helm_has_nothing_against_it(program: Helm) -> None:
    assert program.lint(CHART) == []


def test_every_component_is_a_switch() -> None:
    assert VALUES.keys() == SWITCHES.keys()


@pytest.mark.parametrize("case", CASES)
def test_with_switches_it_installs_what_the_components_build(install: Install, case: str) -> None:
    the_same(copy.deepcopy(install(**switched(case))), built(frozenset(case.split("+")) - {""}))


@pytest.mark.parametrize("overlay", ["cpu", "gpu", "ha", "dev"])
def test_every_overlay_is_some_values(install: Install, overlay: str) -> None:
    small = {"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"cpu": "2", "memory": "6Gi"}}
    open_to_all = {"HOTSWAP_ALLOW_ANONYMOUS": True, "HOTSWAP_API_KEYS": ""}
    values = {
        "cpu": {},
        "gpu": switched("gpu"),
        "ha": switched("s3+hpa+spread"),
        "dev": {"image": {"pullPolicy": "Never"}, "resources": small, "settings": open_to_all},
    }
    the_same(copy.deepcopy(install(**values[overlay])), built(frozenset(), f"overlays/{overlay}"))


def test_dashboards_and_rules_are_those_of_the_monitoring(install: Install) -> None:
    values = {"monitoring": {"dashboards": True, "ruleFiles": True}}
    wanted = built(frozenset()) | built(frozenset(), "monitoring")
    the_same(copy.deepcopy(install(**values)), wanted)


MANY: dict[str, Any] = {
    "image": {"repository": "registry.example.com/hotswap", "tag": "0.1.0", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "registry"}],
    "apiKeys": {"existingSecret": "our-keys"},
    "settings": {"HOTSWAP_MAX_BODY_BYTES": 8388608, "HOTSWAP_DRAIN_SECONDS": 90, "HOTSWAP_EAGER": True},
    "replicas": 3,
    "resources": {"requests": {"cpu": "1", "memory": "1Gi"},
                  "limits": {"cpu": "3", "memory": "3Gi", "nvidia.com/gpu": "2"}},
    "storage": {"existingClaim": "our-claim", "accessMode": "ReadWriteMany"},
    "service": {"type": "LoadBalancer", "port": 8080, "annotations": {"of": "service"}},
    "serviceAccount": {"create": False, "name": "ours"},
    "podAnnotations": {"of": "pod"},
    "podLabels": {"team": "a"},
    "nodeSelector": {"disk": "fast"},
    "tolerations": [{"key": "spot", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "zone", "operator": "Exists"}]}]}}},
    "priorityClassName": "high",
    "extraEnv": [{"name": "HF_HUB_OFFLINE", "value": "1"}],
    "extraEnvFrom": [{"secretRef": {"name": "more"}}],
    "extraVolumes": [{"name": "more", "emptyDir": {"sizeLimit": "1Gi"}}],
    "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
    "networkPolicy": {"egress": [{"ports": [{"port": 9092}]}], "ingress": [{"ports": [{"port": "http"}]}]},
    "router": "nginx",
    "baseModel": {"from": "hub", "model": "Qwen/Qwen3-0.6B"},
    "jobs": {"enabled": True},
    "trainer": {"image": {"repository": "registry.example.com/trainer", "tag": "0.1.0"}, "nodeSelector": {"gpu": "a"}},
    "gateway": {"enabled": True, "name": "outer", "namespace": "edge", "hostnames": ["models.example.com"]},
    "gpu": {"enabled": True, "count": 2},
}  # fmt: skip


def test_values_are_where_they_belong(install: Install) -> None:
    resources = install(**MANY)
    deployment = resources["Deployment", "hotswap"]
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert deployment["spec"]["replicas"] == 3
    metadata = deployment["spec"]["template"]["metadata"]
    assert (metadata["annotations"]["of"], metadata["labels"]["team"]) == ("pod", "a")
    assert (container["image"], container["imagePullPolicy"]) == ("registry.example.com/hotswap:0.1.0", "Always")
    assert pod["initContainers"][0]["imagePullPolicy"] == "Always"
    assert container["resources"] == MANY["resources"]
    for name in ("imagePullSecrets", "nodeSelector", "affinity", "priorityClassName"):
        assert pod[name] == MANY[name]
    assert {each["key"] for each in pod["tolerations"]} == {"nvidia.com/gpu", "spot"}
    assert pod["serviceAccountName"] == "ours"
    assert ("ServiceAccount", "hotswap") not in resources
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == "our-claim"
    assert not [kind for kind, _ in resources if kind == "PersistentVolumeClaim"]
    assert volumes["api-keys"]["secret"]["secretName"] == "our-keys"
    assert not [kind for kind, _ in resources if kind == "Secret"]
    assert volumes["more"]["emptyDir"] == {"sizeLimit": "1Gi"}
    assert {"name": "more", "mountPath": "/more"} in container["volumeMounts"]
    assert container["env"][-1] == MANY["extraEnv"][0]
    assert container["envFrom"][-1] == MANY["extraEnvFrom"][0]
    service = resources["Service", "hotswap"]
    assert (service["spec"]["type"], service["metadata"]["annotations"]) == ("LoadBalancer", {"of": "service"})
    (route,) = [each["spec"] for (kind, _), each in resources.items() if kind == "HTTPRoute"]
    assert route["parentRefs"] == [{"name": "outer", "namespace": "edge"}]
    assert route["hostnames"] == ["models.example.com"]
    assert route["rules"][1]["backendRefs"][0]["port"] == service["spec"]["ports"][0]["port"] == 8080
    worker = resources["Deployment", "hotswap-jobs"]["spec"]["template"]["spec"]
    assert worker["containers"][0]["image"] == "registry.example.com/trainer:0.1.0"
    assert worker["nodeSelector"] == {"gpu": "a"}
    assert "affinity" not in worker, "any node mounts the claim"
    policy = resources["NetworkPolicy", "hotswap"]["spec"]
    assert policy["egress"][-1] == {"ports": [{"port": 9092}]}


def test_as_many_gpus_as_are_asked_for(install: Install) -> None:
    (container,) = install(gpu={"enabled": True, "count": 4})["Deployment", "hotswap"]["spec"]["template"]["spec"][
        "containers"
    ]
    for kind in ("requests", "limits"):
        assert container["resources"][kind]["nvidia.com/gpu"] == "4"


def test_settings_reach_the_server_as_they_are_written(install: Install) -> None:
    resources = install(**MANY)
    settings = Settings.read(resources["ConfigMap", "hotswap"]["data"])
    assert (settings.max_body_bytes, settings.drain_seconds, settings.eager) == (8388608, 90, True)
    grace = resources["Deployment", "hotswap"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace == 90 + 30, "a pod is given longer to stop than the server takes"
    router = resources["ConfigMap", "hotswap-router"]["data"]["nginx.conf.template"]
    assert re.findall(r"_size (\d{2,});", router) == ["8388608", "8388608"]


@pytest.mark.parametrize(("deadline", "seconds"), [(900, 910), (5, 310)])
def test_nothing_in_front_ends_a_request_before_the_server_does(install: Install, deadline: int, seconds: int) -> None:
    for router in ("envoy", "nginx"):
        resources = install(
            settings={"HOTSWAP_DEADLINE_SECONDS": deadline}, router=router, **VALUES["gateway"]
        )  # fmt: skip
        (text,) = resources["ConfigMap", "hotswap-router"]["data"].values()
        limits = re.findall(r"(?:[^_]timeout: |(?:read|send|stream_idle)_timeout:? )(\d{3,})s", text)
        assert len(limits) >= 2
        assert set(limits) == {str(seconds)}
        rules = resources["HTTPRoute", "hotswap"]["spec"]["rules"]
        assert {rule["timeouts"]["request"] for rule in rules} == {f"{seconds}s"}


def test_what_a_value_names_stands_instead_of_what_was_there(install: Install) -> None:
    given = [{"name": "OMP_NUM_THREADS", "value": "1"}, {"name": "VLLM_CPU_OMP_THREADS_BIND", "value": "0-3"}]
    volumes = [{"name": "tmp", "emptyDir": {"sizeLimit": "20Gi"}}]
    resources = install(extraEnv=given, extraVolumes=volumes, **switched("jobs"), trainer={"extraEnv": given[:1]})
    for name, wanted in (("hotswap", given), ("hotswap-jobs", given[:1])):
        pod = resources["Deployment", name]["spec"]["template"]["spec"]
        env = pod["containers"][0]["env"]
        assert len({each["name"] for each in env}) == len(env)
        assert [each for each in env if each in wanted] == wanted
    assert [each for each in resources["Deployment", "hotswap"]["spec"]["template"]["spec"]["volumes"]
            if each["name"] == "tmp"] == volumes  # fmt: skip


def test_the_longest_name_is_not_too_long(install: Install) -> None:
    resources = install(name="a" * 53, **switched(ALL[0]))
    longest = {"CronJob": 52, "NetworkPolicy": 253}
    for kind, name in resources:
        assert len(name) <= longest.get(kind, 63), (kind, name)


def test_another_releases_texts_are_no_reason_for_pods(install: Install) -> None:
    for name, full in (("hotswap", "hotswap"), ("prod", "prod-hotswap")):
        (trigger,) = install(name=name, **switched("keda"))["ScaledObject", full]["spec"]["triggers"]
        namespace, pod = re.findall(r'namespace="([^"]+)", pod=~"([^"]+)"', trigger["metadata"]["query"])[0]
        assert namespace == "models"
        assert re.fullmatch(pod, f"{full}-5d4f8c7b9-x2x7k")
        assert not re.fullmatch(pod, f"{full}-other-5d4f8c7b9-x2x7k")


@pytest.mark.parametrize("case", [{}, MANY, *map(switched, ALL)], ids=["defaults", "many", "all", "all-others"])
def test_every_resource_is_valid_and_safe(install: Install, case: dict[str, Any]) -> None:
    for resource in install(**case).values():
        assert denied(resource) == []
        if is_kubernetes_own(resource):
            for version in KUBERNETES:
                kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.parametrize("case", ALL)
@pytest.mark.parametrize("named", [{"name": "prod"}, {"nameOverride": "models"}, {"fullnameOverride": "models"}])
def test_under_any_name_everything_finds_what_it_names(install: Install, case: str, named: dict[str, str]) -> None:
    resources = install(**named, **switched(case))
    full = {"prod": "prod-hotswap"}.get(named.get("name", ""), named.get("fullnameOverride", "hotswap-models"))
    theirs = {"hotswap-feedback", "hotswap-jobs", "hotswap-s3", "hotswap-hub", "hotswap-recipe"}
    names = {name for _, name in resources}
    assert all(name == full or name.startswith(f"{full}-") for name in names)
    pods = [found for each in resources.values() if (found := template(each))]
    for key, resource in resources.items():
        shown = json.dumps(resource.get("spec", {})) + json.dumps(resource.get("subjects", []))
        if key[0] != "PrometheusRule":
            mentioned = re.findall(r'"(?:name|\w+Name)": "((?:hotswap|models|prod)(?:-[a-z-]+)?)"', shown)
            assert {name for name in mentioned if name not in theirs} <= names | {f"{full}-api-keys"}, key
        selector = resource.get("spec", {}).get("podSelector") or resource.get("spec", {}).get("selector") or {}
        wanted = selector.get("matchLabels", selector)
        if key[0] != "PersistentVolumeClaim" and wanted:
            assert wanted["app.kubernetes.io/instance"] == named.get("name", "hotswap"), "not another release's pods"
            assert any(wanted.items() <= pod["metadata"]["labels"].items() for pod in pods), key
    texts = [text for (kind, _), each in resources.items() if kind == "ConfigMap" for text in each["data"].values()]
    (router,) = [text for text in texts if "-pods" in text]
    assert f"{full}-pods" in router


def test_pods_reach_what_they_need_and_nothing_else(install: Install) -> None:
    reach_what_they_need_and_nothing_else(list(install(**switched(NETWORK)).values()))


@pytest.mark.parametrize("change", [{"settings": {"HOTSWAP_WARM": "mood"}}, {"apiKeys": {"content": "sha256:0"}}])
def test_a_changed_setting_or_key_is_a_rollout(install: Install, change: dict[str, Any]) -> None:
    before, after = (install(**values)["Deployment", "hotswap"]["spec"]["template"] for values in ({}, change))
    assert before != after


def test_a_training_is_another_job_when_it_is_to_do_something_else(install: Install) -> None:
    def job(**values: Any) -> str:
        (name,) = [name for kind, name in install(**switched("train") | values) if kind == "Job"]
        return name

    assert job() == job(replicas=2)
    assert job() != job(trainer={"image": {"tag": "0.2.0"}})


def test_a_package_installs_the_same(program: Helm, install: Install, tmp_path: Path) -> None:
    values = {"monitoring": {"operator": True, "dashboards": True, "ruleFiles": True}}
    resources, _ = program.install(program.pack(CHART, tmp_path), values)
    assert resources == list(install(**values).values())


def test_who_installs_it_without_keys_is_told_how_to_make_one(program: Helm) -> None:
    _, notes = program.install(CHART, {})
    assert "There is no API key" in notes
    assert "--set-file apiKeys.content=api-keys" in notes
    _, notes = program.install(CHART, {"apiKeys": {"existingSecret": "ours"}, "router": "nginx"})
    assert "There is no API key" not in notes
    assert "service/hotswap-router 8000:80" in notes


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"sttings": {}}, "at '': additional properties 'sttings' not allowed"),
        ({"hpa": {"enable": True}}, "at '/hpa': additional properties 'enable' not allowed"),
        ({"settings": {"HOTSWAP_MAX_LORA": 4}}, "at '/settings': additional properties 'HOTSWAP_MAX_LORA' not allowed"),
        ({"settings": {"HOTSWAP_PORT": 80}}, "at '/settings': additional properties 'HOTSWAP_PORT' not allowed"),
        ({"settings": {"HOTSWAP_WARM": ["mood"]}}, "at '/settings/HOTSWAP_WARM': got array, want"),
        ({"replicas": "two"}, "at '/replicas': got string, want integer"),
        ({"replicas": -1}, "at '/replicas': minimum: got -1, want 0"),
        ({"gpu": {"count": 0}}, "at '/gpu/count': minimum: got 0, want 1"),
        ({"router": "haproxy"}, "at '/router': value must be one of '', 'envoy', 'nginx'"),
        ({"tolerations": {"key": "a"}}, "at '/tolerations': got object, want array"),
        ({"storage": {"size": "ten"}}, "at '/storage/size': 'ten' does not match"),
        ({"s3": {"enabled": True, "store": "bucket/adapters"}}, "at '/s3/store': 'bucket/adapters' does not match"),
        ({"s3": {**STORE, "existingSecret": ""}}, "at '/s3/existingSecret': '' does not match"),
        ({"train": {"enabled": True, "recipe": ""}}, "at '/train/recipe': '' does not match"),
        ({"s3": {"enabled": True}}, "s3.enabled needs s3.store: s3://bucket/prefix"),
        ({"s3": {"store": "s3://a/b"}}, "s3.store is named, and s3.enabled is false"),
        ({"s3": STORE, "storage": {"existingClaim": "ours"}}, "s3.enabled and storage.existingClaim: "),
        ({"s3": STORE, "settings": {"HOTSWAP_STORE": "s3://a/b"}}, "name the store in s3.store"),
        (switched("hpa+keda"), "hpa.enabled and keda.enabled: both would set the number of replicas; choose one"),
        ({"hpa": {"enabled": True, "minReplicas": 9}}, "hpa.minReplicas is above hpa.maxReplicas"),
        ({"podLabels": {"app.kubernetes.io/name": "x"}}, "podLabels: app.kubernetes.io/name is the chart's own"),
        ({"fullnameOverride": "my.app"}, "'my.app' is no name for a Service"),
        ({"fullnameOverride": "2go"}, "'2go' is no name for a Service"),
        ({"settings": None}, "at '': missing property 'settings'"),
        ({"jobs": {"volume": None}}, "at '/jobs': missing property 'volume'"),
        (switched("jobs+s3"), "jobs.enabled and s3.enabled: nothing would share the jobs' files"),
        (
            {"gpu": {"enabled": True}, "resources": {"limits": {"cpu": "4", "memory": "8Gi"}}},
            "gpu.enabled and resources: name nvidia.com/gpu in resources.limits too",
        ),
        ({"keda": {"minReplicas": 9}}, "keda.minReplicas is above keda.maxReplicas"),
        (switched("spread"), "spread.enabled: a ReadWriteOnce claim keeps all pods on one node"),
        ({"baseModel": {"from": "hub"}}, "baseModel.from hub needs baseModel.model"),
        ({"baseModel": {"from": "s3"}}, "baseModel.from s3 needs baseModel.uri"),
        ({"baseModel": {"from": "image"}}, "baseModel.from image needs baseModel.image"),
        (
            {**VALUES["base-from-hub"], "settings": {"HOTSWAP_BASE_MODEL": "other"}},
            "baseModel.from and settings.HOTSWAP_BASE_MODEL: name the base in one place",
        ),
        ({"apiKeys": {"content": "sha256:0", "existingSecret": "ours"}}, "keys are in one place; choose one"),
        ({**VALUES["external-secret"], "apiKeys": {"content": "sha256:0"}}, "externalSecret.enabled brings the keys"),
    ],
)  # fmt: skip
def test_values_that_cannot_be_meant_are_refused_in_one_line(
    program: Helm, values: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Refused) as refused:
        program.install(CHART, values)
    (line,) = [line for line in str(refused.value).splitlines() if ": " in line and not line.endswith(":")]
    assert reason in line
