"""Every setting of the server: typed, read once from ``HOTSWAP_…``, loud about mistakes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticUndefined

from adapters.errors import HotswapError
from adapters.reference import InvalidReference, Reference
from adapters.validation import explain
from service.monitoring.texts import Form

PREFIX = "HOTSWAP_"
# What vLLM can be started for.
Rank = Literal[8, 16, 32, 64, 128, 256, 320, 512]
# Variables of the project's other commands, which a server's environment may well carry.
ELSEWHERE = re.compile(r"HOTSWAP_(PYTHON|EXTRA|URL|API_KEY|SIGNING_KEY|LOAD_[A-Z0-9_]+)")
# Kubernetes sets these for each Service of a pod's namespace, unless enableServiceLinks is false: one named hotswap,
# or hotswap-canary, gets our prefix. HOTSWAP_PORT is a link as tcp://10.0.0.1:80, and a setting as 8000.
SERVICE_LINK = re.compile(
    r"HOTSWAP_(?:[A-Z0-9_]+?_)??"
    r"(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?|(?P<port>PORT))"
)
ORIGIN = re.compile(r"https?://[a-zA-Z0-9.\[\]:_-]{1,255}")


class Settings(BaseModel):
    """One field per variable: ``HOTSWAP_MAX_LORAS`` is ``max_loras``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    store: str | None = Field(
        None, description="adapters: a folder, s3://… or gs://…; default var/store in the project"
    )
    base_model: str | None = Field(None, description="a folder or a Hugging Face id; default SmolLM2-135M-Instruct")
    revision: str | None = Field(
        None,
        pattern=r"^[\w./-]{1,200}$",
        description="branch, tag or commit of a base by Hugging Face id; default main",
    )
    cache: Path = Field(Path("~/.cache/hotswap"), description="base models, data, and adapters fetched from the store")
    engine: Literal["vllm", "fake"] = Field("vllm", description="'fake' answers without a model: for wiring tests")
    api_keys: Path | None = Field(
        None, description="file with the hashes of API keys (--new-key makes one); without it no key is asked for"
    )
    trusted_keys: Path | None = Field(
        None, description="public keys (a PEM file, or a folder of them): versions that none of them signed are refused"
    )
    allow_anonymous: bool = Field(False, description="listen beyond this machine without keys; no releases then")
    metrics_port: int | None = Field(None, ge=1, le=65535, description="serve /metrics there instead of on the port")
    api_processes: int | None = Field(
        None,
        ge=1,
        le=64,
        description="processes that answer beside each other on one engine; default 1, by cores on a GPU host",
    )
    max_loras: int = Field(16, ge=1, le=1024, description="adapter versions that one batch can mix")
    max_cpu_loras: int | None = Field(
        None, ge=1, le=8192, description="adapter versions resident in memory at once; default 64, or max_loras if more"
    )
    max_lora_rank: Rank | None = Field(
        None, description="largest rank served; default: the size above the store's largest, at least 16"
    )
    max_model_len: int = Field(2048, ge=64, description="tokens of prompt and answer together")
    max_batched_tokens: int = Field(2048, ge=64, description="tokens that one step of the engine takes in")
    prefix_caching: bool = Field(True, description="keep what prompts of one adapter version begin with in common")
    chunked_prefill: bool = Field(True, description="let long prompts share steps with others' answers")
    cors_origins: tuple[str, ...] = Field(
        (), description="web pages whose scripts may call, with commas: https://app.example; default none"
    )
    max_connections: int = Field(
        1000, ge=1, le=100_000, description="open at once; then the longest idle one is closed, or new ones refused"
    )
    keep_alive_seconds: float = Field(
        75, ge=1, le=3600, description="how long an idle connection is kept: longer than the proxy in front keeps it"
    )
    max_body_bytes: int = Field(2_000_000, ge=1000, description="larger request bodies are refused with 413")
    body_seconds: float = Field(20, gt=0, le=3600, description="a body that takes longer to arrive is refused with 400")
    max_input_chars: int = Field(100_000, ge=1, description="longer texts are refused with input_too_long")
    max_concurrency: int = Field(64, ge=1, description="texts in the engine at once")
    max_queue: int = Field(1024, ge=0, description="texts that may wait for it; more are refused with 429")
    max_wait_seconds: float = Field(
        10,
        gt=0,
        le=3600,
        description="more work than that, by estimate, is refused with 429 however short the queue is",
    )
    answer_cache_mib: float = Field(
        0, ge=0, le=2**20, description="memory for answers given before, which are given again at once; 0: none is kept"
    )
    deadline_seconds: float = Field(300, gt=0, le=3600, description="a request that takes longer is aborted: 504")
    drain_seconds: float = Field(30, ge=0, le=3600, description="how long SIGTERM waits for requests in flight")
    warm: tuple[str, ...] = Field(
        (), description="adapters to keep in memory whatever happens, by name or name@version, with commas"
    )
    probe_tolerance: float | None = Field(
        None,
        gt=0,
        description="nats that a version may be off its reference answers; default 0.02, 0.5 in half precision",
    )
    poll_seconds: float = Field(1.0, gt=0, le=3600, description="how often the store is asked for its pulse")
    store_seconds: float = Field(
        10, gt=0, le=3600, description="how long one question to the store is waited for; its files 30 times as long"
    )
    engine_seconds: float = Field(
        15, gt=0, le=3600, description="an engine that neither answers nor works for so long is started again"
    )
    cache_gib: float = Field(10, gt=0, le=2**20, description="adapters kept of what was fetched from the store")
    sweep_seconds: float = Field(
        30, gt=0, le=3600, description="how often every adapter's releases are read, whatever the pulse"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: float32 on a CPU, the checkpoint's own on a GPU"
    )
    kv_cache_gib: float = Field(1.0, gt=0, le=16384, description="memory for the KV cache (CPU only)")
    kv_cache_dtype: str = Field("auto", description="numbers in the KV cache: fp8 takes half of bfloat16's memory")
    gpu_memory_share: float = Field(
        0.9, gt=0, le=1, description="of each GPU's memory, for weights, slots and KV cache"
    )
    tensor_parallel: int = Field(1, ge=1, le=1024, description="GPUs that share every layer of the base")
    pipeline_parallel: int = Field(1, ge=1, le=1024, description="groups of GPUs that divide the layers among them")
    data_parallel: int = Field(1, ge=1, le=1024, description="copies of the base, each on GPUs of its own")
    quantization: str | None = Field(
        None, description="quantize the base while it is read: fp8 …; default: as its checkpoint is"
    )
    eager: bool = Field(False, description="no CUDA graphs and no compiling: a start in half the time, slower answers")
    attention_backend: str | None = Field(None, description="FLASH_ATTN, TRITON_ATTN …; default: vLLM's choice")
    speculative: dict[str, Any] | None = Field(
        None, description="vLLM's speculative_config, as JSON; default: no speculative decoding"
    )
    engine_args: dict[str, Any] = Field(
        default_factory=dict, description='further options by vLLM\'s names, as JSON: {"block_size": 32}'
    )
    cpu_lora: Literal["grouped", "stock"] = Field(
        "grouped", description="how adapters are computed on a CPU: by us, or as vLLM comes"
    )
    engine_metrics: bool = Field(True, description="vLLM's own metrics, and time to the first token by version")
    tool_parser: str | None = Field(
        None, description="how the base model writes calls of tools, as vLLM names it (hermes, llama3_json, …)"
    )
    reasoning_parser: str | None = Field(
        None, description="how the base model marks what it thinks, as vLLM names it (deepseek_r1, qwen3, …)"
    )
    feedback_log: Path | None = Field(
        None, description="a file to add texts, answers and feedback to, to train on; none: texts are not kept"
    )
    rate_store: str | None = Field(
        None,
        pattern=r"^rediss?://.+",
        description="redis://host:6379/0, where keys' rates are counted for all replicas together; default: on each",
    )
    feedback_database: str | None = Field(
        None,
        description="a path, postgresql://user:password@host/name for replicas on several machines, or off; "
        "default: a SQLite file in the cache",
    )
    feedback_texts: Form = Field(
        "off",
        description="how texts are kept there: off, hashed, redacted (what has the form of personal data) or plain",
    )
    feedback_sample: float = Field(1.0, ge=0, le=1, description="share of predictions that are kept there")
    feedback_days: float = Field(30, gt=0, le=36_500, description="then they are deleted")
    feedback_gib: float = Field(
        1.0, gt=0, le=2**20, description="a SQLite file grows to so much; then the oldest that nobody judged go"
    )
    jobs: Literal["off", "queue", "local"] = Field(
        "off",
        description="fine-tuning jobs: refused, done by `python -m trainer jobs` elsewhere, or by a niced process here",
    )
    jobs_folder: Path | None = Field(None, description="uploaded files, and what jobs work in; default: in the cache")
    jobs_database: str | None = Field(
        None, description="their queue: a path, or postgresql://…; default: a SQLite file in that folder"
    )
    max_file_bytes: int = Field(100_000_000, ge=1000, description="larger uploaded files are refused with 413")
    files_gib: float = Field(1.0, gt=0, le=2**20, description="uploaded files that a key may keep")
    max_jobs: int = Field(10, ge=1, description="unfinished fine-tuning jobs that a key may have")
    auto_release: Literal["none", "canary", "guarded"] = Field(
        "none", description="what becomes of a job's version: asked by number only, a canary, or a guarded one"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="log verbosity")
    log_format: Literal["text", "json"] = Field("text", description="lines for people, or objects for machines")

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.max_cpu_loras is not None and self.max_cpu_loras < self.max_loras:
            raise ValueError(
                f"{PREFIX}MAX_CPU_LORAS ({self.max_cpu_loras}) is below {PREFIX}MAX_LORAS ({self.max_loras}): "
                "what a batch mixes must be resident; raise the first or lower the second"
            )
        if not self.chunked_prefill and self.max_batched_tokens < self.max_model_len:
            raise ValueError(
                f"{PREFIX}CHUNKED_PREFILL=false needs {PREFIX}MAX_BATCHED_TOKENS of at least "
                f"{PREFIX}MAX_MODEL_LEN ({self.max_model_len}): a prompt must then fit into one step"
            )
        if self.max_batched_tokens < self.max_concurrency:
            raise ValueError(
                f"{PREFIX}MAX_BATCHED_TOKENS ({self.max_batched_tokens}) is below {PREFIX}MAX_CONCURRENCY "
                f"({self.max_concurrency}): every text in the engine takes a token of a step"
            )
        processes = self.api_processes or 1
        if processes > self.max_concurrency:
            raise ValueError(
                f"{PREFIX}API_PROCESSES ({processes}) is above {PREFIX}MAX_CONCURRENCY ({self.max_concurrency}): each "
                "process has a part of it, one text at least; lower the first or raise the second"
            )
        if processes > 1 and self.data_parallel > 1:
            raise ValueError(
                f"{PREFIX}API_PROCESSES ({processes}) is not served beside {PREFIX}DATA_PARALLEL "
                f"({self.data_parallel}) yet; set one of them to 1"
            )
        if len(self.warm) >= self.max_resident:
            raise ValueError(
                f"{PREFIX}WARM names {len(self.warm)} adapters and {PREFIX}MAX_CPU_LORAS is {self.max_resident}: "
                "one place must be left for the others; raise the second"
            )
        for text in self.warm:
            try:
                channel = Reference.parse(text).channel
            except InvalidReference as error:
                raise ValueError(f"{PREFIX}WARM: {error}") from None
            if channel is not None:
                raise ValueError(f"{PREFIX}WARM: '{text}' is neither a name nor a version such as sentiment@3")
        if unknown := [origin for origin in self.cors_origins if not ORIGIN.fullmatch(origin)]:
            raise ValueError(f"{PREFIX}CORS_ORIGINS: '{unknown[0]}' is no origin such as https://app.example")
        return self

    @property
    def cache_bytes(self) -> int:
        return int(self.cache_gib * 2**30)

    @property
    def answer_cache_bytes(self) -> int:
        return int(self.answer_cache_mib * 2**20)

    @property
    def feedback_bytes(self) -> int:
        return int(self.feedback_gib * 2**30)

    @property
    def files_bytes(self) -> int:
        return int(self.files_gib * 2**30)

    @property
    def max_resident(self) -> int:
        """Adapter versions in memory at once."""
        return self.max_cpu_loras or max(64, self.max_loras)

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Return the settings of ``environment``. Raises :class:`HotswapError` naming the variable at fault."""
        given = {
            name: value
            for name, value in environment.items()
            if name.startswith(PREFIX) and not _is_service_link(name, value)
        }
        values = {}
        for name, value in given.items():
            key = name.removeprefix(PREFIX).lower()
            if key not in cls.model_fields:
                if ELSEWHERE.fullmatch(name):
                    continue
                close = get_close_matches(key, cls.model_fields, n=1)
                hint = f"did you mean {PREFIX}{close[0].upper()}?" if close else "see python -m service --help."
                raise HotswapError(f"{name} is not a setting; {hint}")
            if value != "":
                values[key] = _value(key, value)
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            raise HotswapError(explain(error, place=_variable, with_input=True)) from None
        return settings.model_copy(update={"cache": settings.cache.expanduser()})

    @classmethod
    def table(cls) -> str:
        """Return the settings, their defaults and what they mean, one a line."""
        lines = []
        for name, info in cls.model_fields.items():
            default = "" if info.default in (None, (), PydanticUndefined) else info.default
            lines.append(f"  {PREFIX + name.upper():<26} {default!s:<17} {info.description}")
        return "\n".join(lines)


def _is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes has set this: for a Service named hotswap, in every pod of its namespace."""
    match = SERVICE_LINK.fullmatch(name)
    return match is not None and (match["port"] is None or "://" in value)


def _value(key: str, value: str) -> object:
    """Return what a variable says, in the type that pydantic does not make of a string."""
    match key:
        case "max_lora_rank" if value.isdigit():
            return int(value)
        case "warm" | "cors_origins":
            return [part.strip() for part in value.split(",") if part.strip()]
        case "engine_args" | "speculative":
            return _object(key, value)
    return value


def _object(key: str, value: str) -> dict[str, Any]:
    try:
        read = json.loads(value)
    except ValueError as error:
        raise HotswapError(f'{PREFIX}{key.upper()} is not JSON ({error}); write it as {{"name": value}}.') from None
    if not isinstance(read, dict):
        raise HotswapError(f'{PREFIX}{key.upper()} is no JSON object; write it as {{"name": value}}.')
    return read


def rank_above(largest: int) -> int:
    """Return the smallest rank that the engine can be started for above ``largest``: room for the next adapter."""
    ranks: list[int] = sorted(
        rank for option in get_args(Settings.model_fields["max_lora_rank"].annotation) for rank in get_args(option)
    )
    return next((rank for rank in ranks if rank >= 16 and rank > largest), ranks[-1])


def _variable(location: tuple[Any, ...]) -> str:
    return f"{PREFIX}{str(location[0]).upper()}" if location else ""
