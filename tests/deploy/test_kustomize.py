"""What ``kubectl kustomize`` builds: valid for Kubernetes, and true to what the server does and needs."""

from __future__ import annotations

import base64
import copy
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import kubernetes_validate
import pytest
import regopy
import yaml
from fastapi.routing import APIRoute

from scripts.prometheus_rule import RESOURCE
from scripts.prometheus_rule import resource as prometheus_rule
from service.engine.vllm import SHUTDOWN_SECONDS
from service.http.routes import openai, predict
from service.metrics import Metrics
from service.settings import Settings
from tests.deploy.network import Pod, passes, pods
from trainer.__main__ import parser

Built = Callable[[str], list[dict]]
ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
COMPONENTS = sorted(path.name for path in (K8S / "components").iterdir())
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
FOLDERS = [
    "base",
    "monitoring",
    *(f"overlays/{name}" for name in OVERLAYS),
    *(f"components/{name}" for name in COMPONENTS),
]
# The last four minor versions that the schemas know.
NEWEST = int(kubernetes_validate.latest_version().split(".")[1])
KUBERNETES = [f"1.{minor}" for minor in range(NEWEST - 3, NEWEST + 1)]


def build(folder: Path) -> list[dict]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def base() -> dict[str, dict]:
    """The resources of k8s/base by kind."""
    return {resource["kind"]: resource for resource in build(ROOT / "k8s" / "base")}


@pytest.fixture(scope="module")
def pod(base: dict[str, dict]) -> dict:
    return base["Deployment"]["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod: dict) -> dict:
    (only,) = pod["containers"]
    return only


@pytest.fixture(scope="module")
def settings(base: dict[str, dict]) -> Settings:
    """The settings that the server reads from the ConfigMap; a name it does not know is an error here."""
    return Settings.read(base["ConfigMap"]["data"])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[dict]]:
    """Build a folder of k8s/, or components (``components/jobs+s3``) as an overlay of k8s/base; each once."""
    known: dict[str, list[dict]] = {}

    def resources(name: str) -> list[dict]:
        if name not in known:
            folder = K8S / name
            if name.startswith("components/"):
                folder = tmp_path_factory.mktemp("overlay")
                components = [K8S / "components" / each for each in name.removeprefix("components/").split("+")]
                parts = {"resources": [K8S / "base"], "components": components}
                listed = {kind: [os.path.relpath(part, folder) for part in parts[kind]] for kind in parts}
                (folder / "kustomization.yaml").write_text(yaml.safe_dump(listed))
            known[name] = build(folder)
        return known[name]

    return resources


def one(resources: list[dict], kind: str, name: str = "hotswap") -> dict:
    """Return the resource of that name, which may have a hash behind it."""
    named = re.compile(rf"{name}(-[a-z0-9]{{10}})?")
    (found,) = [each for each in resources if each["kind"] == kind and named.fullmatch(each["metadata"]["name"])]
    return found


def template(resource: dict) -> dict | None:
    """Return the template of a workload's pods."""
    spec = resource.get("spec", {})
    return spec.get("jobTemplate", {}).get("spec", spec).get("template")


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_resource_is_valid(built: Built, folder: str) -> None:
    for resource in built(folder):
        if is_kubernetes_own(resource):
            for version in KUBERNETES:
                kubernetes_validate.validate(resource, version, strict=True)


def is_kubernetes_own(resource: dict) -> bool:
    """Whether the schemas can know it: groups of extensions are not theirs."""
    group = resource["apiVersion"].rpartition("/")[0]
    return "." not in group or group in ("networking.k8s.io", "rbac.authorization.k8s.io")


def denied(resource: dict) -> list[str]:
    policies = regopy.Interpreter()
    policies.add_module("service", (K8S / "policies" / "service.rego").read_text())
    policies.set_input(resource)
    answer = policies.query("data.hotswap.deny")
    assert answer.ok(), answer
    return json.loads(str(answer))["expressions"][0]


@pytest.mark.parametrize("folder", FOLDERS)
def test_our_policies_have_nothing_against_it(built: Built, folder: str) -> None:
    assert [reason for resource in built(folder) for reason in denied(resource)] == []


def _latest(pod: dict) -> None:
    pod["containers"][0]["image"] = "hotswap:latest"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda pod: pod["containers"][0]["securityContext"].pop("allowPrivilegeEscalation"), "may become root"),
        (lambda pod: pod["containers"][0]["securityContext"].pop("readOnlyRootFilesystem"), "writes to its root"),
        (lambda pod: pod["containers"][0]["securityContext"]["capabilities"].pop("drop"), "keeps capabilities"),
        (lambda pod: pod["containers"][0]["resources"]["limits"].pop("memory"), "has no limit"),
        (lambda pod: pod.update(initContainers=[{"name": "one", "image": "one:1"}]), "has no limit"),
        (_latest, "may change under it"),
        (lambda pod: pod["securityContext"].update(runAsUser=0), "runs as root"),
        (lambda pod: pod.pop("enableServiceLinks"), "adds variables"),
        (lambda pod: pod.pop("automountServiceAccountToken"), "may ask Kubernetes' API"),
    ],
)
def test_our_policies_have_something_against_what_is_unsafe(
    base: dict[str, dict], spoil: Callable[[dict], object], reason: str
) -> None:
    spoilt = copy.deepcopy(base["Deployment"])
    spoil(spoilt["spec"]["template"]["spec"])
    assert [each for each in denied(spoilt) if reason in each]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_variable_is_a_setting(built: Built, folder: str) -> None:
    settings = {each["metadata"]["name"]: each["data"] for each in built(folder) if each["kind"] == "ConfigMap"}
    for resource in built(folder):
        pod = (template(resource) or {}).get("spec", {})
        for container in [*pod.get("containers", []), *pod.get("initContainers", [])]:
            given = {entry["name"]: "1" for entry in container.get("env", []) if entry["name"].startswith("HOTSWAP_")}
            for source in container.get("envFrom", []):
                given |= settings.get(source.get("configMapRef", {}).get("name"), {})
            Settings.read(given)


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_selects_pods_finds_some(built: Built, folder: str) -> None:
    resources = built(folder)
    pods = [found["metadata"]["labels"] for each in resources if (found := template(each))]
    for resource in resources:
        spec = resource.get("spec", {})
        selector = spec.get("podSelector") or spec.get("selector") or {}
        if resource["kind"] == "PersistentVolumeClaim" or not selector:
            continue
        wanted = selector.get("matchLabels", {} if "matchExpressions" in selector else selector)
        assert any(wanted.items() <= labels.items() for labels in pods), resource["metadata"]["name"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_ports_that_are_named_exist(built: Built, folder: str) -> None:
    resources = built(folder)
    templates = [found for each in resources if (found := template(each))]
    for resource in resources:
        spec = resource.get("spec", {})
        labels = (spec.get("podSelector") or spec.get("selector") or {}).get("matchLabels", {})
        named = {
            port["port"]
            for rule in [*spec.get("ingress", []), *spec.get("podMetricsEndpoints", [])]
            for port in rule.get("ports", [rule])
            if isinstance(port.get("port"), str)
        }
        there = {
            port["name"]
            for each in templates
            if labels.items() <= each["metadata"]["labels"].items()
            for container in each["spec"]["containers"]
            for port in container.get("ports", [])
        }
        assert named <= there, resource["metadata"]["name"]


DNS = Pod({"k8s-app": "kube-dns"}, namespace={"kubernetes.io/metadata.name": "kube-system"})
OUTSIDE = Pod(namespace={})
GATEWAY = Pod(namespace={"hotswap-client": "true"})
PROMETHEUS = Pod(namespace={"kubernetes.io/metadata.name": "monitoring"})
NEIGHBOUR = Pod({"app": "anything"})
NETWORK = "jobs+train+retrain+envoy+gateway"


def reach_what_they_need_and_nothing_else(resources: list[dict]) -> None:
    """Hold the policies against who talks to whom."""
    policies = [each for each in resources if each["kind"] == "NetworkPolicy"]
    ours = pods([found for each in resources if (found := template(each))])
    assert ours.keys() == {"service", "router", "picker", "jobs", "train", "retrain"}
    service, router, picker = ours["service"], ours["router"], ours["picker"]
    for name, pod in ours.items():
        assert passes(policies, pod, DNS, 53, "UDP"), f"{name} finds no address"
        assert passes(policies, pod, OUTSIDE, 443), name
        assert not passes(policies, pod, OUTSIDE, 22), f"{name}: what is not listed is denied"
        assert not passes(policies, OUTSIDE, pod, 8000), f"{name}: strangers are kept out"
        assert not passes(policies, OUTSIDE, pod, 9000), name
    for name in ("service", "jobs", "train", "retrain"):
        assert passes(policies, ours[name], OUTSIDE, 5432), f"{name} reaches PostgreSQL"
    assert passes(policies, service, OUTSIDE, 6379)
    assert passes(policies, picker, OUTSIDE, 6443), "it watches Kubernetes' API"
    for caller in (NEIGHBOUR, GATEWAY):
        assert passes(policies, caller, service, 8000)
        assert passes(policies, caller, router, 8080)
        assert passes(policies, caller, picker, 9002), "a Gateway's pods may be beside ours"
        assert not passes(policies, caller, service, 9000)
    assert passes(policies, router, service, 8000)
    for reader in (PROMETHEUS, picker):
        assert passes(policies, reader, service, 9000)


def test_pods_reach_what_they_need_and_nothing_else(built: Built) -> None:
    reach_what_they_need_and_nothing_else(built(f"components/{NETWORK}"))


def test_the_base_is_complete(base: dict[str, dict]) -> None:
    assert set(base) == {
        *("Deployment", "Service", "ConfigMap", "Secret", "PersistentVolumeClaim"),
        *("ServiceAccount", "NetworkPolicy", "PodDisruptionBudget"),
    }


def test_what_the_autoscalers_go_by_is_a_metric_of_ours(built: Built) -> None:
    ours = {family.name for family in Metrics().registry.collect()}
    (metric,) = one(built("components/hpa"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] in ours
    (trigger,) = one(built("components/keda"), "ScaledObject")["spec"]["triggers"]
    assert set(re.findall(r"hotswap_\w+", trigger["metadata"]["query"])) <= ours
    for name, kind in (("hpa", "HorizontalPodAutoscaler"), ("keda", "ScaledObject")):
        target = one(built(f"components/{name}"), kind)["spec"]["scaleTargetRef"]
        assert target["name"] == one(built(f"components/{name}"), "Deployment")["metadata"]["name"]


def test_a_gateway_sends_what_names_an_adapter_to_where_it_is(built: Built, settings: Settings) -> None:
    resources = built("components/gateway")
    pooled, rest = one(resources, "HTTPRoute")["spec"]["rules"]
    routes = {
        (method, route.path)
        for router in (predict.router, openai.router)
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }
    for match in pooled["matches"]:
        assert (match["method"], match["path"]["value"]) in routes
    assert {backend["name"] for backend in rest["backendRefs"]} == {
        one(resources, "Service", "hotswap")["metadata"]["name"]
    }
    pool = one(resources, "InferencePool")["spec"]
    assert pool["targetPorts"] == [{"number": settings.port}]
    picker = template(one(resources, "Deployment", "hotswap-picker"))
    assert picker is not None
    (container,) = picker["spec"]["containers"]
    assert f"--model-server-metrics-port={settings.metrics_port}" in container["args"]
    assert f"--pool-name={one(resources, 'InferencePool')['metadata']['name']}" in container["args"]
    assert pool["endpointPickerRef"]["port"]["number"] in [port["containerPort"] for port in container["ports"]]
    seconds = int(pooled["timeouts"]["request"].removesuffix("s"))
    assert seconds > settings.deadline_seconds, "the server's own deadline comes first, and says what it is"


def test_what_nginxs_image_fills_in_is_what_the_pod_has(built: Built) -> None:
    resources = built("components/nginx")
    (config,) = one(resources, "ConfigMap", "hotswap-router")["data"].values()
    (container,) = one(resources, "Deployment", "hotswap-router")["spec"]["template"]["spec"]["containers"]
    given = {entry["name"] for entry in container["env"]}
    assert "NGINX_ENTRYPOINT_LOCAL_RESOLVERS" in given, "by it the entry point sets NGINX_LOCAL_RESOLVERS"
    assert set(re.findall(r"\$\{(\w+)\}", config)) <= given | {"NGINX_LOCAL_RESOLVERS"}
    pods = one(resources, "Service", "hotswap-pods")
    assert (
        re.findall(r"server ([\w-]+)\.\S+?:(\d+) resolve", config)
        == [(pods["metadata"]["name"], str(pods["spec"]["ports"][0]["port"]))] * 2
    )


def test_the_operators_rules_are_those_of_the_monitoring(built: Built) -> None:
    files = sorted((K8S / "monitoring" / "rules").glob("*.yaml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    assert one(built("components/operator"), "PrometheusRule")["spec"]["groups"] == groups
    assert RESOURCE.read_text() == prometheus_rule(), "run make docs"


def test_over_a_store_in_a_bucket_nothing_keeps_the_pods_together(built: Built) -> None:
    for folder in ("components/s3", "overlays/ha"):
        resources = built(folder)
        assert not [each for each in resources if each["kind"] == "PersistentVolumeClaim"]
        pod = template(one(resources, "Deployment"))["spec"]  # type: ignore[index]
        assert "affinity" not in pod
        assert not [volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
        assert Settings.read(one(resources, "ConfigMap")["data"]).store.startswith("s3://")


@pytest.mark.parametrize("folder", ["components/hpa", "components/keda", "overlays/ha"])
def test_the_autoscaler_alone_says_how_many_replicas_there_are(built: Built, folder: str) -> None:
    assert "replicas" not in one(built(folder), "Deployment")["spec"]


def test_many_replicas_are_spread(built: Built) -> None:
    resources = built("overlays/ha")
    deployment = one(resources, "Deployment")
    spread = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert {each["topologyKey"] for each in spread} == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    for each in spread:
        assert (
            each["labelSelector"]["matchLabels"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
        )


def test_a_pod_on_a_gpu_has_one_and_longer_to_start(built: Built) -> None:
    deployment = one(built("overlays/gpu"), "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "hotswap:gpu"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    probe = container["startupProbe"]
    assert deployment["spec"]["progressDeadlineSeconds"] >= probe["periodSeconds"] * probe["failureThreshold"] >= 1800
    assert "VLLM_CPU_OMP_THREADS_BIND" not in {entry["name"] for entry in container["env"]}


def test_in_development_it_starts_without_keys(built: Built) -> None:
    settings = Settings.read(one(built("overlays/dev"), "ConfigMap")["data"])
    assert settings.allow_anonymous
    assert settings.api_keys is None


@pytest.mark.parametrize("name", ["base-from-s3", "base-from-image"])
def test_the_server_finds_the_base_where_it_was_put(built: Built, name: str) -> None:
    resources = built(f"components/{name}")
    base = Settings.read(one(resources, "ConfigMap")["data"]).base_model
    assert base is not None
    pod = template(one(resources, "Deployment"))["spec"]  # type: ignore[index]
    mounts = {mount["mountPath"]: mount for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts[str(Path(base).parent)]["readOnly"]
    for init in pod.get("initContainers", []):
        assert base in init["args"]


def test_who_prepares_the_base_is_the_server_itself(built: Built) -> None:
    pod = template(one(built("components/base-from-hub"), "Deployment"))["spec"]  # type: ignore[index]
    (init,) = pod["initContainers"]
    assert init["args"] == ["--prepare"]
    assert init["image"] == pod["containers"][0]["image"]
    assert {"name": "data", "mountPath": "/var/lib/hotswap"} in init["volumeMounts"]


def test_the_three_probes_ask_the_right_paths(container: dict) -> None:
    asked = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert asked == {
        "startup": {"path": "/readyz", "port": "http"},
        "readiness": {"path": "/readyz", "port": "http"},
        "liveness": {"path": "/livez", "port": "http"},
    }


def test_a_first_start_has_ten_minutes(base: dict[str, dict], container: dict) -> None:
    probe = container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 600
    assert base["Deployment"]["spec"]["progressDeadlineSeconds"] > 600


def test_a_pod_is_given_longer_to_stop_than_the_server_takes_to_drain_and_end(
    pod: dict, container: dict, settings: Settings
) -> None:
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause + settings.drain_seconds + SHUTDOWN_SECONDS


def test_a_rollout_takes_no_pod_away_before_its_successor_is_ready(base: dict[str, dict]) -> None:
    assert base["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_a_rollout_keeps_to_the_node_of_a_volume_that_only_one_node_can_mount(base: dict[str, dict], pod: dict) -> None:
    assert base["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteOnce"]
    (term,) = pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"] == base["Deployment"]["spec"]["selector"]


def test_kubernetes_adds_no_variables_that_look_like_settings(pod: dict) -> None:
    assert pod["enableServiceLinks"] is False


def test_traffic_and_scrapes_reach_the_ports_that_the_server_listens_on(
    base: dict[str, dict], container: dict, settings: Settings
) -> None:
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": settings.port, "metrics": settings.metrics_port}
    assert settings.host == "0.0.0.0"
    template = base["Deployment"]["spec"]["template"]
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(settings.metrics_port)
    assert base["Service"]["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert [port["targetPort"] for port in base["Service"]["spec"]["ports"]] == ["http"]


def test_everything_the_server_writes_is_on_the_volume_and_the_rest_is_read_only(
    pod: dict, container: dict, settings: Settings
) -> None:
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    (claimed,) = [volume["name"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
    (mount,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == claimed]
    assert Path(settings.store).is_relative_to(mount)
    assert settings.cache.is_relative_to(mount)


def test_runs_without_root_and_without_privileges(pod: dict, container: dict) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001, "the user that the image makes"
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_engine_takes_as_many_threads_as_the_pod_has_cores(container: dict) -> None:
    env = {entry["name"]: entry for entry in container["env"]}
    assert env["OMP_NUM_THREADS"]["valueFrom"] == {"resourceFieldRef": {"resource": "limits.cpu"}}
    assert env["VLLM_CPU_OMP_THREADS_BIND"]["value"] == "nobind"


def mounted_keys(resources: dict[str, dict], settings: Settings) -> str:
    """Return what the server finds in the file that HOTSWAP_API_KEYS names."""
    assert settings.api_keys is not None
    pod = resources["Deployment"]["spec"]["template"]["spec"]
    folders = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == folders[str(settings.api_keys.parent)]]
    assert volume["secret"]["secretName"] == resources["Secret"]["metadata"]["name"]
    return base64.b64decode(resources["Secret"]["data"][settings.api_keys.name]).decode()


def test_no_key_is_committed(base: dict[str, dict], settings: Settings) -> None:
    assert mounted_keys(base, settings) == ""


def overlay(folder: Path, keys: str) -> dict[str, dict]:
    """Build the overlay that docs/deploying.md shows."""
    page = (ROOT / "docs" / "deploying.md").read_text()
    shown = page.partition("# kustomization.yaml\n")[2].partition("```")[0]
    (folder / "kustomization.yaml").write_text(shown.replace("../k8s/base", os.path.relpath(ROOT / "k8s/base", folder)))
    (folder / "api-keys").write_text(keys)
    return {resource["kind"]: resource for resource in build(folder)}


def test_the_overlay_in_the_docs_brings_keys_and_an_image(tmp_path: Path, settings: Settings) -> None:
    resources = overlay(tmp_path, "one\ntwo\n")
    assert mounted_keys(resources, settings) == "one\ntwo\n"
    assert (
        resources["Deployment"]["spec"]["template"]["spec"]["containers"][0]["image"]
        == "registry.example.com/hotswap:0.1.0"
    )


def test_a_changed_key_is_a_rollout(tmp_path: Path) -> None:
    before, after = (overlay(tmp_path, keys)["Deployment"]["spec"]["template"] for keys in ("one\n", "two\n"))
    assert before != after


@pytest.fixture(scope="module", params=["retrain", "train", "jobs"])
def training(request: pytest.FixtureRequest, built: Built) -> tuple[dict, dict]:
    """The Deployment of the service, and the job's spec of who trains beside it."""
    resources = built(f"components/{request.param}")
    name = f"hotswap-{request.param}"
    (job,) = [each for each in resources if each["metadata"]["name"] == name and "spec" in each]
    return one(resources, "Deployment"), job["spec"].get("jobTemplate", job)["spec"]


def test_who_trains_has_the_servers_settings_feedback_and_volume(
    training: tuple[dict, dict], settings: Settings
) -> None:
    def parts(template: dict) -> tuple[list, dict, list, dict]:
        pod = template["spec"]
        env = {entry["name"]: entry for entry in pod["containers"][0]["env"]}
        claims = [volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
        return pod["containers"][0]["envFrom"], env["HOTSWAP_FEEDBACK_DATABASE"], claims, pod["affinity"]

    deployment, job = training
    assert parts(job["template"]) == parts(deployment["spec"]["template"])
    (trainer,) = job["template"]["spec"]["containers"]
    assert Path(settings.store).is_relative_to(trainer["workingDir"]), "where runs are kept, it may write"


def test_who_trains_is_no_replica_of_the_service(training: tuple[dict, dict]) -> None:
    deployment, job = training
    labels = job["template"]["metadata"]["labels"]
    assert not deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert labels["app.kubernetes.io/part-of"] == "hotswap", "the network's policy is for it as well"


@pytest.mark.parametrize("added", ["s3", "base-from-hub", "base-from-image", "base-from-s3", "s3+base-from-s3"])
@pytest.mark.parametrize("who", ["jobs", "train", "retrain"])
def test_who_trains_gets_what_is_added_to_the_service(built: Built, who: str, added: str) -> None:
    resources = built(f"components/{who}+{added}")
    claims = {each["metadata"]["name"] for each in resources if each["kind"] == "PersistentVolumeClaim"}
    base = Path(Settings.read(one(resources, "ConfigMap")["data"]).base_model or "")
    (trainer,) = [each for each in resources if each["metadata"]["name"] == f"hotswap-{who}" and "spec" in each]
    pod = (template(trainer) or {})["spec"]
    (container,) = pod["containers"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes.keys() == set(mounts.values())
    assert {
        each["persistentVolumeClaim"]["claimName"] for each in volumes.values() if "persistentVolumeClaim" in each
    } == claims
    assert ("affinity" in pod) == bool(claims), "what only one node mounts keeps pods together"
    assert not base.is_absolute() or str(base.parent) in mounts
    secrets = {source["secretRef"]["name"] for source in container["envFrom"] if "secretRef" in source}
    parts = added.split("+")
    assert secrets == {
        f"hotswap-{part.removeprefix('base-from-')}" for part in parts if part in ("s3", "base-from-hub")
    }


def test_who_does_fine_tuning_jobs_has_the_queue_that_the_service_fills(built: Built) -> None:
    resources = built("components/jobs")
    assert Settings.read(one(resources, "ConfigMap")["data"]).jobs == "queue"
    queues = []
    for name in ("hotswap", "hotswap-jobs"):
        (container,) = one(resources, "Deployment", name)["spec"]["template"]["spec"]["containers"]
        queues += [entry for entry in container["env"] if entry["name"] == "HOTSWAP_JOBS_DATABASE"]
    assert len(queues) == 2
    assert queues[0] == queues[1]
    (worker,) = one(resources, "Deployment", "hotswap-jobs")["spec"]["template"]["spec"]["containers"]
    parser().parse_args(worker["args"])


def test_over_a_store_in_a_bucket_jobs_files_are_on_a_volume_of_all(built: Built) -> None:
    resources = built("components/jobs+jobs-volume+s3")
    (claim,) = [each for each in resources if each["kind"] == "PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    folder = Settings.read(one(resources, "ConfigMap")["data"]).jobs_folder
    for name in ("hotswap", "hotswap-jobs"):
        pod = one(resources, "Deployment", name)["spec"]["template"]["spec"]
        (volume,) = [each["name"] for each in pod["volumes"] if "persistentVolumeClaim" in each]
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounts[volume] == str(folder)


def test_what_the_jobs_are_asked_to_do_are_commands_of_the_trainer(built: Built) -> None:
    nightly = one(built("components/retrain"), "CronJob", "hotswap-retrain")["spec"]["jobTemplate"]["spec"]["template"]
    options = parser().parse_args(nightly["spec"]["containers"][0]["args"])
    assert (options.name, options.least, options.canary) == ("sentiment", 200, 5)
    (script,) = one(built("components/train"), "Job", "hotswap-train")["spec"]["template"]["spec"]["containers"][0][
        "args"
    ]
    commands = [command.split() for command in script.split(";")]
    assert [command[:3] for command in commands] == [["python", "-m", "trainer"]] * 3
    for command in commands:
        parser().parse_args(command[3:])


def test_grafana_and_prometheus_find_their_files() -> None:
    maps = {resource["metadata"]["name"]: resource for resource in build(ROOT / "k8s" / "monitoring")}
    dashboards, rules = maps["hotswap-dashboards"], maps["hotswap-rules"]
    assert dashboards["metadata"]["labels"] == {"grafana_dashboard": "1"}
    monitoring = ROOT / "k8s" / "monitoring"
    for folder, found in (("dashboards", dashboards), ("rules", rules)):
        files = (monitoring / folder).iterdir()
        assert found["data"] == {f"hotswap-{file.name}": file.read_text() for file in files}
