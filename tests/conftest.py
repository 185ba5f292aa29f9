"""A base model small enough to make on the spot, adapters for it, and stores."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from adapters.base_model import Base, resolve_base
from adapters.intake import add_version
from adapters.releases import NewRelease
from adapters.store import Store
from adapters.tasks import ClassificationTask, SummarizationTask
from tests.postgres import PostgresServer
from tests.s3 import S3Server

# Beside each other, engines and trainings with a thread for each core would wait for one another's threads, spinning.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

LAYERS, HIDDEN, HEADS, VOCABULARY = 2, 128, 2, 600
WORDS = (
    "A moving, beautifully acted film. The plot is dull and slow. Review: Sentiment: Text: Label: Summary: In one line:"
)
LABELS = ["positive", "negative"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MakeAdapter = Callable[..., Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes minutes: at the end the other worker would have nothing left to do beside it."""
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, item.path.parent != Path(__file__).parent))


@pytest.fixture(autouse=True)
def _no_settings_leak_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have a server configured in this very shell."""
    settings = "STORE BASE_MODEL API_KEYS PORT HOST ENGINE METRICS_PORT MAX_LORAS CPU_LORA SIGNING_KEY TRUSTED_KEYS"
    settings += " FEEDBACK_DATABASE FEEDBACK_LOG FEEDBACK_TEXTS"
    for name in settings.split():
        monkeypatch.delenv(f"HOTSWAP_{name}", raising=False)


@pytest.fixture(autouse=True)
def _no_logging_leaks_out() -> Iterator[None]:
    """A command that is run in the tests' process sets up its log, on a stderr that is closed when the test ends."""
    loggers = [logging.getLogger(name) for name in ("hotswap", "uvicorn")]
    before = [(list(each.handlers), each.propagate, each.level) for each in loggers]
    yield
    for each, (handlers, propagate, level) in zip(loggers, before, strict=True):
        each.handlers[:], each.propagate = handlers, propagate
        each.setLevel(level)


@pytest.fixture(scope="session")
def tiny_folder(request: pytest.FixtureRequest) -> Path:
    """A two-layer random Llama with a byte-level vocabulary: real in every way but its answers.

    Kept in pytest's cache until this file changes: importing PyTorch takes longer than most tests.
    """
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    kept = request.config.cache.mkdir(f"base-{recipe}") / "tiny-llama"
    if not kept.exists():
        with suppress(OSError):  # other tests beside these were first
            _write_base(kept.with_name(f"of-{os.getpid()}")).rename(kept)
    return kept


def _write_base(folder: Path) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([WORDS + " positive negative billing bug"] * 8, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        bos_token="<|im_start|>",
        unk_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Base:
    return resolve_base(str(tiny_folder), tmp_path_factory.mktemp("cache"))


def write_prompt(folder: Path, *, tokens: int = 3, seed: int = 0, width: int = HIDDEN, **config: Any) -> Path:
    """Write a learnt prompt as PEFT does."""
    folder.mkdir(parents=True, exist_ok=True)
    vectors = np.random.default_rng(seed).normal(size=(tokens, width)).astype(np.float16)
    save_file({"prompt_embeddings": vectors}, folder / "adapter_model.safetensors")
    about = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": tokens} | config
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def make_adapter(tmp_path: Path) -> MakeAdapter:
    """Return a maker of PEFT adapter folders for the tiny base, sound unless told otherwise."""
    made = 0

    def make(*, rank: int = 4, seed: int = 0, scale: float = 0.3, config: dict | None = None) -> Path:
        nonlocal made
        made += 1
        folder = tmp_path / f"adapter-{made}"
        write_adapter(folder, rank=rank, seed=seed, scale=scale, config=config)
        return folder

    return make


def write_adapter(
    folder: Path, *, rank: int = 4, seed: int = 0, scale: float = 0.3, config: dict | None = None
) -> Path:
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(LAYERS):
        for module, width in (("q_proj", HIDDEN), ("v_proj", HIDDEN // HEADS)):
            key = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{key}.lora_A.weight"] = random.normal(0, scale, (rank, HIDDEN)).astype(np.float32)
            tensors[f"{key}.lora_B.weight"] = random.normal(0, scale, (width, rank)).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny-llama",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings | (config or {})))
    return folder


@pytest.fixture(scope="session")
def sentiment_task(tiny: Base) -> ClassificationTask:
    return ClassificationTask.of("Review: {text}\nSentiment:", LABELS, tiny.tokenizer)


@pytest.fixture(scope="session")
def summary_task() -> SummarizationTask:
    return SummarizationTask.of("Text: {text}\n\nSummary:", max_answer_tokens=12)


def make_keys(folder: Path, name: str = "team", curve: str = "prime256v1") -> tuple[Path, Path]:
    """Make a key pair as the documentation says; return the private key's file and the public one's."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    subprocess.run(["openssl", "ecparam", "-name", curve, "-genkey", "-noout", "-out", private], check=True)
    subprocess.run(["openssl", "ec", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return private, public


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """An S3 server that this process's environment names, with nothing counted yet."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3_server.requests.clear()
    s3_server.keys.clear()
    monkeypatch.setattr(s3_server, "overloaded", False)
    monkeypatch.setattr(s3_server, "refusal", "")
    return s3_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    server = PostgresServer()
    yield server
    server.remove()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store on disk."""
    return Store(tmp_path / "store")


@pytest.fixture
def stocked(
    store: Store,
    make_adapter: MakeAdapter,
    tiny: Base,
    sentiment_task: ClassificationTask,
    summary_task: SummarizationTask,
) -> Store:
    """A store with ``mood`` (versions 1 and 2, 1 released) and ``brief`` (version 1, released)."""
    for seed in (1, 2):
        add_version(store, "mood", make_adapter(seed=seed), sentiment_task, tiny)
    add_version(store, "brief", make_adapter(seed=3), summary_task, tiny)
    store.release("mood", NewRelease(stable=1))
    store.release("brief", NewRelease(stable=1))
    return store
