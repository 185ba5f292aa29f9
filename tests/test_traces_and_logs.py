"""One request is one trace and one line, and neither holds what was asked: a server of its own, and a collector."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from adapters.base_model import Base
from adapters.store import Store
from tests.server import Server, serving

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "Nobody but the adapter may read this sentence."


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process is about to make true; fail loudly rather than for ever."""
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


class Collector:
    """Takes spans as an OpenTelemetry collector does (OTLP over HTTP)."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.raw = b""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.raw += body
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        collector.spans += scope.spans
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def of(self, trace: str) -> dict[str, Any]:
        return {span.name: span for span in self.spans if span.trace_id.hex() == trace}


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


@contextmanager
def started(place: Path, store: Store, tiny: Base, **settings: str) -> Iterator[Server]:
    fixed = {"engine": "fake", "store": store.place, "base_model": str(tiny.folder), "cache": str(place / "cache")}
    with serving(place / "server.log", **fixed, **settings) as server:
        yield server


def lines(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log.read_text().splitlines()]


def test_a_request_is_one_trace_through_every_part_and_continues_the_callers(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stocked: Store, tiny: Base
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server.server_port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with started(tmp_path, stocked, tiny, log_format="json") as server:
        asked = {"adapter": "mood", "input": SECRET}
        answer = server.client.post("/v1/predict", json=asked, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
        assert answer.status_code == 200
        until(lambda: "POST /v1/predict" in collector.of(TRACE))
        spans = collector.of(TRACE)
        assert set(spans) == {"POST /v1/predict", "choice", "hold", "queue", "prefill", "decode"}
        root = spans.pop("POST /v1/predict")
        assert root.parent_span_id.hex() == PARENT
        assert {span.parent_span_id for span in spans.values()} == {root.span_id}
        told = {each.key: each.value.string_value or each.value.int_value for each in root.attributes}
        assert told["hotswap.adapter"] == "mood"
        assert told["hotswap.version"] == "1"
        assert told["http.response.status_code"] == 200
        asks = {"accept": "application/openmetrics-text;version=1.0.0"}
        assert f'trace_id="{TRACE}"' in server.client.get("/metrics", headers=asks).text, (
            "an exemplar leads to the trace"
        )
        (line,) = [line for line in lines(server) if line.get("trace") == TRACE]
        assert (line["adapter"], line["version"], line["status"], line["level"]) == ("mood", "1", "200", "info")
        assert line["request"] == answer.headers["x-request-id"]
    assert SECRET not in server.log.read_text()
    assert SECRET.encode() not in collector.raw


def test_a_collector_that_is_away_costs_no_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stocked: Store, tiny: Base
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    with started(tmp_path, stocked, tiny) as server:
        for _ in range(5):
            assert server.client.post("/v1/predict", json={"adapter": "mood", "input": "x"}).status_code == 200


def test_every_line_is_an_object_and_one_is_written_for_a_request(tmp_path: Path, stocked: Store, tiny: Base) -> None:
    with started(tmp_path, stocked, tiny, log_format="json") as server:
        server.client.post("/v1/predict", json={"adapter": "nobody", "input": SECRET})
        server.client.post("/v1/predict", content=b"{", headers={"content-type": "application/json"})
        assert server.stop() == 0  # a request's line follows its answer
        said = lines(server)
    assert {"event", "level", "timestamp"} <= set.intersection(*(set(line) for line in said))
    assert [line["status"] for line in said if line.get("route") == "/v1/predict"] == ["404", "400"]


def test_the_level_changes_while_it_runs(tmp_path: Path, stocked: Store, tiny: Base) -> None:
    with started(tmp_path, stocked, tiny, log_format="json") as server:
        server.process.send_signal(signal.SIGUSR1)
        until(lambda: lines(server)[-1]["event"] == "log level: debug")
        server.process.send_signal(signal.SIGUSR1)
        until(lambda: lines(server)[-1]["event"] == "log level: info")


@pytest.mark.parametrize(
    "accept", ["application/openmetrics-text; version=1.0.0", "application/vnd.google.protobuf", "*/*", ""]
)
def test_a_scraper_gets_what_it_asks_for_or_text(tmp_path: Path, stocked: Store, tiny: Base, accept: str) -> None:
    with started(tmp_path, stocked, tiny) as server:
        answer = httpx.get(f"{server.url}/metrics", headers={"accept": accept}, timeout=60)
        assert answer.status_code == 200
        assert ("openmetrics" in answer.headers["content-type"]) == ("openmetrics" in accept)
        assert answer.text.endswith("# EOF\n") == ("openmetrics" in accept)
        assert "hotswap_ready 1.0" in answer.text
        assert "_created" not in answer.text
