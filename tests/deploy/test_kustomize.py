"""What ``kubectl kustomize`` builds: valid for Kubernetes, and true to what the server does and needs."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from service.engine.vllm import SHUTDOWN_SECONDS
from service.settings import Settings
from trainer.__main__ import parser

ROOT = Path(__file__).parents[2]
# The oldest release that is still in wide use, and the newest that the schemas know.
KUBERNETES = ("1.29", kubernetes_validate.latest_version())


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


@pytest.mark.parametrize("folder", ["base", "monitoring"])
@pytest.mark.parametrize("version", KUBERNETES)
def test_every_resource_is_valid(folder: str, version: str) -> None:
    for resource in build(ROOT / "k8s" / folder):
        kubernetes_validate.validate(resource, version, strict=True)


def test_the_base_is_complete(base: dict[str, dict]) -> None:
    assert set(base) == {"Deployment", "Service", "ConfigMap", "Secret", "PersistentVolumeClaim"}


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


@pytest.fixture(scope="module")
def retraining(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """The resources of k8s/base with the component that trains anew, by kind."""
    folder = tmp_path_factory.mktemp("overlay")
    parts = {"resources": "base", "components": "retrain"}
    listed = {kind: [os.path.relpath(ROOT / "k8s" / part, folder)] for kind, part in parts.items()}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(listed))
    return {resource["kind"]: resource for resource in build(folder)}


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_job_that_trains_anew_is_valid(retraining: dict[str, dict], version: str) -> None:
    kubernetes_validate.validate(retraining["CronJob"], version, strict=True)


def test_who_trains_anew_has_the_servers_settings_feedback_and_volume(
    retraining: dict[str, dict], settings: Settings
) -> None:
    def parts(of: dict) -> tuple[list, dict, list, dict]:
        pod = of["spec"]["template"]["spec"]
        env = {entry["name"]: entry for entry in pod["containers"][0]["env"]}
        claims = [volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
        return pod["containers"][0]["envFrom"], env["HOTSWAP_FEEDBACK_DATABASE"], claims, pod["affinity"]

    job = retraining["CronJob"]["spec"]["jobTemplate"]
    assert parts(job) == parts(retraining["Deployment"])
    (trainer,) = job["spec"]["template"]["spec"]["containers"]
    assert Path(settings.store).is_relative_to(trainer["workingDir"]), "where runs are kept, it may write"


def test_who_trains_anew_is_no_replica_of_the_service(retraining: dict[str, dict]) -> None:
    labels = retraining["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"]
    assert not retraining["Service"]["spec"]["selector"].items() <= labels.items()


def test_what_the_job_is_asked_to_do_is_a_command_of_the_trainer(retraining: dict[str, dict]) -> None:
    (trainer,) = retraining["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    options = parser().parse_args(trainer["args"])
    assert (options.name, options.least, options.canary) == ("sentiment", 200, 5)


def test_grafana_and_prometheus_find_their_files() -> None:
    maps = {resource["metadata"]["name"]: resource for resource in build(ROOT / "k8s" / "monitoring")}
    dashboards, rules = maps["hotswap-dashboards"], maps["hotswap-rules"]
    assert dashboards["metadata"]["labels"] == {"grafana_dashboard": "1"}
    monitoring = ROOT / "k8s" / "monitoring"
    for folder, found in (("dashboards", dashboards), ("rules", rules)):
        files = (monitoring / folder).iterdir()
        assert found["data"] == {f"hotswap-{file.name}": file.read_text() for file in files}
