"""Spans of a request for OpenTelemetry, where a collector is named; nothing otherwise."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from typing import Any

from opentelemetry import context, trace
from opentelemetry.propagate import extract
from opentelemetry.trace import SpanKind, StatusCode

from adapters.errors import HotswapError
from service.engine.base import Timing

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
# What is known of the request that is being answered: its id, trace, adapter, version. For the log.
facts: ContextVar[dict[str, str] | None] = ContextVar("facts", default=None)
_tracer = trace.get_tracer("hotswap")
_NOTHING: AbstractContextManager[None] = nullcontext()


def set_up(environment: Mapping[str, str] = os.environ) -> bool:
    """Export spans as OpenTelemetry's standard variables say (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME,
    OTEL_TRACES_SAMPLER, …); return whether there is somewhere to export them to.

    Raises :class:`HotswapError` for variables that the exporter cannot use.
    """
    off = (
        environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none"
    )
    if off or not any(environment.get(name) for name in ENDPOINTS):
        return False
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    try:
        provider = TracerProvider(
            resource=Resource.create({"service.name": environment.get("OTEL_SERVICE_NAME", "hotswap")})
        )
        provider.add_span_processor(BatchSpanProcessor(_exporter(environment)))
    except Exception as error:  # whatever the exporter raises, it is about the variables
        raise HotswapError(f"traces cannot be exported as OTEL_… says: {error}") from None
    trace.set_tracer_provider(provider)
    _on.cache_clear()
    return True


def _exporter(environment: Mapping[str, str]) -> Any:
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


@cache
def _on() -> bool:
    # The API's own spans that lead nowhere would cost 6 µs each, and to ask for the provider 3.
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


@contextmanager
def request(method: str, headers: Mapping[str, str], request_id: str) -> Iterator[dict[str, str]]:
    """Open a request's span, as part of the caller's trace (W3C ``traceparent``); yield what is known of it, to be
    added to, ``status`` before it ends."""
    known = {"request": request_id}
    told = facts.set(known)
    try:
        if not _on():
            yield known
            return
        span = _tracer.start_span(method, extract(headers), SpanKind.SERVER, {"http.request.method": method})
        known["trace"] = f"{span.get_span_context().trace_id:032x}"
        token = context.attach(trace.set_span_in_context(span))
        try:
            yield known
        finally:
            context.detach(token)
            if status := known.get("status"):
                span.set_attribute("http.response.status_code", int(status))
                span.set_status(StatusCode.ERROR if int(status) >= 500 else StatusCode.UNSET)
            if route := known.get("route"):
                span.update_name(f"{method} {route}")
                span.set_attribute("http.route", route)
            for name in ("adapter", "version", "channel"):
                if name in known:
                    span.set_attribute(f"hotswap.{name}", known[name])
            span.end()
    finally:
        facts.reset(told)


def span(name: str) -> AbstractContextManager[None]:
    """Time a part of the request."""
    return _span(name) if _on() else _NOTHING


@contextmanager
def _span(name: str) -> Iterator[None]:
    # Never made the current one: a generator may be closed in another context than it was begun in.
    part = _tracer.start_span(name)
    try:
        yield
    except BaseException as error:
        part.set_status(StatusCode.ERROR, type(error).__name__)
        raise
    finally:
        part.end()


def engine(timing: Timing) -> None:
    """Add what the engine measured of an answer that has just ended."""
    if not _on():
        return
    now = time.time_ns()
    first = now - round(1e9 * timing.decode)
    begun = first - round(1e9 * timing.prefill)
    for name, start, end in (("prefill", begun, first), ("decode", first, now)):
        _tracer.start_span(name, start_time=start).end(end)


def exemplar() -> dict[str, str] | None:
    """Return what joins a measurement to the trace of its request, where that is recorded."""
    if not _on():
        return None
    found = trace.get_current_span().get_span_context()
    return {"trace_id": f"{found.trace_id:032x}"} if found.trace_flags.sampled else None


def note(**known: str) -> None:
    """Say more of the request that is being answered."""
    if (there := facts.get()) is not None:
        there.update(known)
