"""On a local Ray: two replicas, a release that flips on both, and one whose server is killed."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from adapters.base_model import Base
from adapters.intake import add_version
from adapters.store import Store
from adapters.tasks import ClassificationTask
from service.settings import Settings
from tests.conftest import write_adapter

pytestmark = pytest.mark.slow
RAY = Path(__file__).parents[1] / "k8s" / "ray"
# So many that some go to each of two replicas, wherever these come to lie on the ring.
NAMES = [f"mood-{number}" for number in range(24)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny: Base) -> Store:
    folder = tmp_path_factory.mktemp("cluster")
    store = Store(folder / "store")
    task = ClassificationTask.of("Review: {text}\nSentiment:", ["positive", "negative"], tiny.tokenizer)
    for place, name in enumerate(NAMES):
        for version in (1, 2):
            add_version(store, name, write_adapter(folder / f"{name}-{version}", seed=2 * place + version), task, tiny)
        store.release(name, 1)
    return store


@pytest.fixture(scope="module")
def client(store: Store, tiny: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    import ray
    from ray import serve

    from service.cluster import Cluster, build

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    cache = tmp_path_factory.mktemp("cache")
    settings = {"ENGINE": "fake", "STORE": store.place, "BASE_MODEL": str(tiny.folder), "CACHE": str(cache)}
    environment = {f"HOTSWAP_{name}": value for name, value in settings.items()} | {"HOTSWAP_FEEDBACK_DATABASE": "off"}
    environment |= {"HOTSWAP_ALLOW_ANONYMOUS": "true"}
    # Ray begins anew with a proxy that is not there after five seconds; where nothing is compiled yet, none ever is.
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "200")
    for module in (ray.serve._private.api, ray.serve._private.client):
        patch.setattr(module, "HTTP_PROXY_TIMEOUT", 200)
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build(Cluster(replicas=2, cpus=0.1, environment=environment)))
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            yield client
    finally:
        serve.shutdown()
        ray.shutdown()
        patch.undo()


def ask(client: httpx.Client, name: str) -> httpx.Response:
    answer = client.post("/v1/predict", json={"model": name, "input": "A moving film."})
    assert answer.status_code == 200, answer.text
    return answer


def until(true: Callable[[], bool]) -> None:
    """Bounded by the test's timeout: how long Ray takes to start a replica is not tested."""
    while not true():
        time.sleep(0.1)


def test_the_files_for_clusters_say_what_can_be_built() -> None:
    from service.cluster import Cluster

    (application,) = yaml.safe_load((RAY / "serve.yaml").read_text())["applications"]
    on_kubernetes = yaml.safe_load((RAY / "service.yaml").read_text())["spec"]["serveConfigV2"]
    assert yaml.safe_load(on_kubernetes)["applications"] == [application]
    assert application["import_path"] == "service.cluster:build"
    Settings.read(Cluster.model_validate(application["args"]).environment)


def test_no_probe_needs_a_program_that_the_image_does_not_have() -> None:
    cluster = yaml.safe_load((RAY / "service.yaml").read_text())["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        for probe in ("livenessProbe", "readinessProbe"):
            assert "httpGet" in container[probe], "KubeRay would put one there that asks with wget"


@pytest.mark.parametrize("name", ["mood", "é" * 40, "x" + "é" * 40, "x" * 100, b"\xff\xfe".decode("latin1")])
def test_any_name_chooses_a_replica(name: str) -> None:
    from service.cluster import adapter_in

    for encoding in ("utf-8", "latin1"):
        chosen = adapter_in(f'{{"model": "{name}@3"}}'.encode(encoding))
        assert chosen
        assert chosen[0] == name[0] or encoding == "latin1"
    assert adapter_in(b'{"input": "x"}') is None


def test_an_adapters_requests_go_to_one_replica_and_adapters_spread(client: httpx.Client) -> None:
    where = {name: {ask(client, name).headers["x-hotswap-replica"] for _ in range(5)} for name in NAMES}
    assert all(len(replicas) == 1 for replicas in where.values()), where
    assert len(set().union(*where.values())) == 2, where


def test_what_is_asked_and_answered_is_passed_on_as_it_is(client: httpx.Client) -> None:
    assert ask(client, "mood-0@2").json()["adapter"]["version"] == 2
    refused = client.post("/v1/predict", json={"model": "nobody", "input": "x"}, headers={"X-Request-Id": "mine"})
    assert (refused.status_code, refused.json()["code"]) == (404, "adapter_not_found")
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["x-request-id"] == "mine"
    assert len(client.get("/v1/adapters", params={"limit": 2}).json()["adapters"]) == 2
    assert client.get("/v1/adapters/mood-0%3Fx=1").status_code == 404, "a question mark in a name is no query"
    unknown = client.post("/v1/predict", json={"model": "x" + "é" * 40, "input": "x"})
    assert unknown.status_code < 500, unknown.text


def test_who_comes_by_rays_proxy_is_a_stranger(client: httpx.Client) -> None:
    refused = client.post("/v1/adapters/mood-0/releases", json={"stable": 2})
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")


def test_a_replica_tells_the_autoscaler_how_many_texts_wait(client: httpx.Client) -> None:
    from ray import serve

    replica = serve.get_deployment_handle("Replica", "default")
    assert replica.record_autoscaling_stats.remote().result(timeout_s=30) == {"waiting": 0.0}


def test_a_release_flips_on_both(client: httpx.Client, store: Store) -> None:
    for name in NAMES:
        store.release(name, 2)
    until(lambda: all(ask(client, name).json()["adapter"]["version"] == 2 for name in NAMES))


@pytest.mark.timeout(300)
def test_a_server_that_is_killed_costs_no_answer_and_is_replaced(client: httpx.Client, store: Store) -> None:
    server = next(process for process in psutil.process_iter() if _serves(process, store))
    replicas = {ask(client, name).headers["x-hotswap-replica"] for name in NAMES}
    server.kill()
    for _ in range(3):
        for name in NAMES:
            ask(client, name)
    until(lambda: len({ask(client, name).headers["x-hotswap-replica"] for name in NAMES} - replicas) >= 1)


def _serves(process: psutil.Process, store: Store) -> bool:
    try:
        return process.cmdline()[1:3] == ["-m", "service"] and process.environ()["HOTSWAP_STORE"] == store.place
    except (psutil.Error, KeyError):  # it has just ended, or is another's
        return False
