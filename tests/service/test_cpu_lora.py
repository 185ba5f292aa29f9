"""LoRA on the CPU: our kernels against one row at a time, and the engine that uses them against PEFT itself."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders

from adapters.base_model import Base
from adapters.tasks import Sampling
from service.engine import launch
from service.engine.base import Chunk
from service.engine.vllm import VllmEngine
from service.settings import Settings
from tests.conftest import VOCABULARY

if TYPE_CHECKING:
    from service.engine.cpu_lora import GroupedLoRA

pytestmark = [pytest.mark.slow, pytest.mark.anyio, pytest.mark.filterwarnings("ignore::UserWarning:peft")]

NOBODY = -1

# ---------------------------------------------------------------------------------------------------------------------
# The kernels alone
# ---------------------------------------------------------------------------------------------------------------------

MAX_RANK, INPUTS = 64, 24
MakeLoRA = Callable[[], "GroupedLoRA"]
properties = hypothesis_settings(max_examples=60, deadline=None)


class Module:
    """A module's adapters as vLLM keeps them: for every slice all slots in one A and one B, padded with zeros."""

    def __init__(self, slots: int, widths: Sequence[int], inputs: int = INPUTS) -> None:
        self.a = tuple(torch.zeros(slots, 1, MAX_RANK, inputs) for _ in widths)
        self.b = tuple(torch.zeros(slots, 1, width, MAX_RANK) for width in widths)
        self.widths = tuple(widths)

    def write(self, slot: int, ranks: Sequence[int], seed: int) -> None:
        """Fill a slot in the order in which vLLM does. Rank 0: the adapter does not target this slice."""
        generator = torch.Generator().manual_seed(seed)
        for tensor in (*self.a, *self.b):
            tensor[slot] = 0
        for a, b, rank in zip(self.a, self.b, ranks, strict=True):
            if rank:
                used = torch.rand(rank, 1, generator=generator) > 0.1  # training may well leave a rank at zero
                a[slot, 0, :rank].copy_(torch.randn(rank, a.shape[-1], generator=generator) * used / a.shape[-1] ** 0.5)
                b[slot, 0, :, :rank].copy_(torch.randn(b.shape[-2], rank, generator=generator))

    def deltas(self, x: torch.Tensor, rows: Sequence[int], scale: float = 1.0) -> torch.Tensor:
        """Return what is to be added to each row: its own adapter's B A x, or nothing. In double precision."""
        a, b = [t.double() for t in self.a], [t.double() for t in self.b]
        delta = torch.zeros(len(rows), sum(self.widths), dtype=torch.double)
        for row, slot in enumerate(rows):
            if slot != NOBODY:
                products = [b_i[slot, 0] @ (a_i[slot, 0] @ x[row].double()) for a_i, b_i in zip(a, b, strict=True)]
                delta[row] = scale * torch.cat(products)
        return delta

    def add(self, lora: GroupedLoRA, y: torch.Tensor, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        """Return ``y`` with the adapters' share, leaving the one given as it is."""
        y = y.clone()
        lora.add_lora_linear(y, x, self.a, self.b, scale, self.widths)
        return y


@dataclass(frozen=True)
class Case:
    """Slots with adapters in them, and a batch of runs: (slot, or NOBODY for the base model; length)."""

    ids: tuple[int | None, ...]
    runs: tuple[tuple[int, int], ...]
    widths: tuple[int, ...]
    ranks: tuple[tuple[int, ...], ...]
    scale: float = 1.0
    seed: int = 0

    @property
    def rows(self) -> list[int]:
        return [slot for slot, length in self.runs for _ in range(length)]

    @property
    def samples(self) -> list[int]:
        """One row for each run: where the logits are computed."""
        return [slot for slot, _ in self.runs]

    def module(self, inputs: int = INPUTS) -> Module:
        module = Module(len(self.ids), self.widths, inputs)
        for slot, ranks in enumerate(self.ranks):
            module.write(slot, ranks, self.seed + slot)
        return module

    def noise(self, rows: int, width: int) -> torch.Tensor:
        return torch.randn(rows, width, generator=torch.Generator().manual_seed(self.seed + width))


def case(slots: int, runs: Iterable[tuple[int, int]], widths: Sequence[int] = (16, 8, 8), rank: int = 8) -> Case:
    """A case by hand, with every slot filled."""
    ids = tuple(range(1, slots + 1))
    return Case(ids, tuple(runs), tuple(widths), ((rank,) * len(widths),) * slots)


@st.composite
def cases(draw: st.DrawFn, slices: int = 3) -> Case:
    slots = draw(st.integers(1, 8))
    empty = draw(st.sets(st.integers(0, slots - 1), max_size=slots // 2))
    order = draw(st.permutations(range(1, slots + 1)))
    rank = st.just(0) | st.integers(1, MAX_RANK)
    widths = draw(st.lists(st.integers(1, 48), min_size=1, max_size=slices))
    run = st.tuples(st.sampled_from([NOBODY, *sorted(set(range(slots)) - empty)]), st.integers(1, 80))
    return Case(
        ids=tuple(None if slot in empty else adapter for slot, adapter in enumerate(order)),
        runs=tuple(draw(st.lists(run, min_size=1, max_size=10))),
        widths=tuple(widths),
        ranks=tuple(draw(st.tuples(*[st.tuples(*[rank] * len(widths))] * slots))),
        scale=draw(st.sampled_from([1.0, 0.25, 3.0])),
        seed=draw(st.integers(0, 999)),
    )


@pytest.fixture(scope="module")
def make_lora() -> MakeLoRA:
    launch.prepare(Settings())  # what the process imports first decides which platform vLLM runs on
    from service.engine.cpu_lora import GroupedLoRA

    return lambda: GroupedLoRA(1024, 1024, device="cpu")


def announce(lora: GroupedLoRA, case: Case, rows: Sequence[int] | None = None) -> None:
    """Tell whose row is whose, as vLLM does once per step."""
    from vllm.lora.layers import LoRAMapping

    index, prompt = (
        tuple(0 if slot == NOBODY else case.ids[slot] for slot in mapped)
        for mapped in (case.rows if rows is None else rows, case.samples)
    )
    lora.update_metadata(LoRAMapping(index, prompt, is_prefill=True), list(case.ids), len(case.ids) + 1, VOCABULARY)


def check(y: torch.Tensor, before: torch.Tensor, delta: torch.Tensor, rows: Sequence[int]) -> None:
    """Every adapter's row got its delta, to rounding; rows of the base model did not change in a single bit."""
    base = [row for row, slot in enumerate(rows) if slot == NOBODY]
    assert torch.equal(y[base], before[base])
    torch.testing.assert_close(y.double(), before.double() + delta, rtol=1e-4, atol=1e-4)


@properties
@given(case=cases())
def test_a_linear_module_adds_each_rows_own_adapter(make_lora: MakeLoRA, case: Case) -> None:
    lora, module = make_lora(), case.module()
    x, y = case.noise(len(case.rows), INPUTS), case.noise(len(case.rows), sum(case.widths))
    announce(lora, case)
    check(module.add(lora, y, x, case.scale), y, module.deltas(x, case.rows, case.scale), case.rows)


@properties
@given(case=cases(slices=1), padding=st.integers(-8, 40))
def test_logits_get_the_adapter_of_each_sampled_row(make_lora: MakeLoRA, case: Case, padding: int) -> None:
    # Logits come with more columns than B where the vocabulary is padded, or with fewer.
    lora, module, (width,) = make_lora(), case.module(), case.widths
    columns = max(1, width + padding)
    x, before = case.noise(len(case.samples), INPUTS), case.noise(len(case.samples), columns)
    announce(lora, case)
    y = before.clone()
    lora.add_lora_logits(y, x, module.a[0], module.b[0], case.scale)
    delta = torch.nn.functional.pad(module.deltas(x, case.samples, case.scale), (0, columns - width))
    check(y, before, delta, case.samples)
    assert torch.equal(y[:, width:], before[:, width:])


@properties
@given(case=cases(slices=1))
def test_an_embedding_adds_what_its_own_adapter_looked_up(make_lora: MakeLoRA, case: Case) -> None:
    lora, module, (width,) = make_lora(), case.module(VOCABULARY), case.widths
    tokens = torch.randint(VOCABULARY, (len(case.rows),), generator=torch.Generator().manual_seed(case.seed))
    before = case.noise(len(case.rows), width)
    announce(lora, case)
    # vLLM's own layer does this: A of all slots lies in one table.
    table = module.a[0].squeeze(1).transpose(1, 2).flatten(0, 1)
    y = before.clone()
    lora.add_lora_embedding(y, table[tokens + lora._embeddings_indices[: len(tokens)]], module.b[0], add_input=True)
    check(y, before, module.deltas(torch.nn.functional.one_hot(tokens, VOCABULARY), case.rows), case.rows)


Steps = list[tuple[list[tuple[int, int]], Case]]


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], Steps]:
    """Return adapters' ranks, and steps: adapters that are written into slots, (slot, id), and then a batch."""
    slots, widths = draw(st.integers(1, 4)), draw(st.lists(st.integers(1, 48), min_size=1, max_size=3))
    ranks = draw(st.lists(st.tuples(*[st.integers(0, MAX_RANK)] * len(widths)), min_size=slots, max_size=8))
    slot = st.integers(0, slots - 1)
    moves = st.lists(st.tuples(slot, st.integers(1, len(ranks))), max_size=2)
    runs = st.lists(st.tuples(st.just(NOBODY) | slot, st.integers(1, 3) | st.integers(1, 80)), min_size=1, max_size=8)
    held: list[int | None] = [None] * slots
    steps: Steps = []
    for moved, batch in draw(st.lists(st.tuples(moves, runs), min_size=1, max_size=12)):
        for to, adapter in moved:
            held = [None if before == adapter else before for before in held]  # it is in one slot at a time
            held[to] = adapter
        filled = [(slot if held[slot] is not None else NOBODY, length) for slot, length in batch]
        steps.append((moved, Case(tuple(held), tuple(filled), tuple(widths), ranks=())))
    return ranks, steps


@hypothesis_settings(properties, max_examples=30)
@given(history=histories())
def test_steps_before_leave_no_trace(make_lora: MakeLoRA, history: tuple[list[tuple[int, ...]], Steps]) -> None:
    # As vLLM's slots go: another adapter comes into one, or the same one comes back into another.
    ranks, steps = history
    lora, module = make_lora(), steps[0][1].module()
    for moves, step in steps:
        for slot, adapter in moves:
            module.write(slot, ranks[adapter - 1], seed=adapter)
        x, y = step.noise(len(step.rows), INPUTS), step.noise(len(step.rows), sum(step.widths))
        announce(lora, step)
        check(module.add(lora, y, x), y, module.deltas(x, step.rows), step.rows)


@hypothesis_settings(properties, max_examples=30)
@given(case=cases(), shuffle=st.randoms(use_true_random=False))
def test_a_row_is_the_same_whatever_else_is_in_the_batch_and_in_whatever_order(
    make_lora: MakeLoRA, case: Case, shuffle: random.Random
) -> None:
    lora, module, rows = make_lora(), case.module(), case.rows
    x, y = case.noise(len(rows), INPUTS), case.noise(len(rows), sum(case.widths))
    announce(lora, case)
    together = module.add(lora, y, x, case.scale)
    apart = [[row for row, owner in enumerate(rows) if owner == slot] for slot in {*rows}]
    shuffled = shuffle.sample(range(len(rows)), len(rows))
    for some in (*apart, shuffled):
        announce(lora, case, rows=[rows[row] for row in some])
        torch.testing.assert_close(module.add(lora, y[some], x[some], case.scale), together[some], rtol=0, atol=1e-4)


def test_an_adapter_that_overflows_harms_no_other_row(make_lora: MakeLoRA) -> None:
    # Its weights are finite: intake takes it. When decoding, the rows of several adapters share one product.
    lora, mixed = make_lora(), case(slots=3, runs=[(0, 1), (1, 1), (2, 1), (NOBODY, 1)] * 4)
    module, x, y = mixed.module(), mixed.noise(16, INPUTS), mixed.noise(16, 32)
    for a in module.a:
        a[0, 0, :8] = 3e38
    announce(lora, mixed)
    others = [row for row, slot in enumerate(mixed.rows) if slot != 0]
    got = module.add(lora, y, x)[others]
    torch.testing.assert_close(got.double(), (y + module.deltas(x, mixed.rows))[others], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", [nullcontext, torch.inference_mode], ids=["as is", "inference mode"])
def test_a_slot_is_used_with_the_weights_of_the_adapter_that_it_was_given_last(
    make_lora: MakeLoRA, mode: Callable[[], AbstractContextManager[None]]
) -> None:
    lora, mixed = make_lora(), case(slots=3, runs=[(0, 60), (1, 3), (NOBODY, 2), (2, 1), (1, 1)])
    module, x, y = mixed.module(), mixed.noise(67, INPUTS), mixed.noise(67, 32)
    with mode():
        for turn, ranks in enumerate([(8, 8, 8), (64, 64, 64), (1, 0, 3), (0, 0, 0), (8, 8, 8)], start=1):
            for slot in range(3):
                adapter = 3 * turn + slot + 1
                module.write(slot, ranks, seed=adapter)
                mixed = replace(mixed, ids=(*mixed.ids[:slot], adapter, *mixed.ids[slot + 1 :]))
                announce(lora, mixed)
                check(module.add(lora, y, x), y, module.deltas(x, mixed.rows), mixed.rows)


def test_requests_that_arrive_together_are_computed_adapter_by_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_worker = pytest.importorskip("vllm.v1.worker.cpu_worker")
    from service.engine.cpu_worker import HotswapCpuWorker

    monkeypatch.setattr(cpu_worker.CPUWorker, "execute_model", lambda _, step: step)
    loras = [SimpleNamespace(lora_int_id=adapter) if adapter else None for adapter in (2, 0, 1, 2, 0)]
    step = SimpleNamespace(scheduled_new_reqs=[SimpleNamespace(lora_request=lora) for lora in loras])
    done = HotswapCpuWorker.execute_model(HotswapCpuWorker.__new__(HotswapCpuWorker), step)
    assert [new.lora_request for new in done.scheduled_new_reqs] == [None, None, loras[2], loras[0], loras[3]]


@pytest.mark.parametrize("rows", [1, 16, 500])
def test_a_batch_without_adapters_is_left_alone(make_lora: MakeLoRA, rows: int) -> None:
    # Stock vLLM gives these rows what is in the last slot.
    lora, mixed = make_lora(), case(slots=3, runs=[(NOBODY, rows)], widths=[32])
    module, x, y = mixed.module(), mixed.noise(rows, INPUTS), mixed.noise(rows, 32)
    embedded, logits = y.clone(), y[:1].clone()
    announce(lora, mixed)
    lora.add_lora_embedding(embedded, mixed.noise(rows, MAX_RANK), module.b[0], add_input=True)
    lora.add_lora_logits(logits, x[:1], module.a[0], module.b[0], 1.0)
    assert torch.equal(module.add(lora, y, x), y)
    assert torch.equal(embedded, y)
    assert torch.equal(logits, y[:1])


@pytest.mark.parametrize("rank", [1, 8, 64])
@pytest.mark.parametrize(
    ("slots", "runs"),
    [
        pytest.param(4, [(slot, 1) for slot in (0, 1, 2, 3) * 4], id="decoding: 4 adapters in turn"),
        pytest.param(4, [(slot, 1) for slot in (0, NOBODY, 1, 2, NOBODY, 3, 3, 1) * 2], id="and the base between"),
        pytest.param(2, [(1, 1), (NOBODY, 1)] * 8, id="decoding: one adapter and the base in turn"),
        pytest.param(20, [(slot, 1) for slot in range(20)], id="20 adapters, one row each"),
        pytest.param(20, [(7 * n % 20, 1) for n in range(60)], id="20 adapters scattered"),
        pytest.param(20, [(n, 1 + n % 3) for n in range(9)] + [(NOBODY, 3), (0, 70)], id="9 short runs and a long one"),
        pytest.param(9, [(8, 100), *((n, 1) for n in range(9)), (8, 100)], id="long runs around nine rows"),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_rows_scattered_over_many_adapters_get_their_own(
    make_lora: MakeLoRA, slots: int, runs: list[tuple[int, int]], rank: int, scale: float
) -> None:
    lora, mixed = make_lora(), case(slots, runs, rank=rank)
    module, x, y = mixed.module(), mixed.noise(len(mixed.rows), INPUTS), mixed.noise(len(mixed.rows), 32)
    announce(lora, mixed)
    check(module.add(lora, y, x, scale), y, module.deltas(x, mixed.rows, scale), mixed.rows)


def test_in_one_step_an_adapter_may_have_another_rank_in_every_module(make_lora: MakeLoRA) -> None:
    lora, mixed = make_lora(), case(slots=3, runs=[(slot, 1) for slot in (0, 1, 2) * 5] + [(2, 60)])
    x, y = mixed.noise(75, INPUTS), mixed.noise(75, 32)
    announce(lora, mixed)
    for ranks in itertools.permutations([(8, 8, 8), (1, 30, 0), (64, 2, 2)]):
        module = replace(mixed, ranks=ranks).module()
        check(module.add(lora, y, x), y, module.deltas(x, mixed.rows), mixed.rows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_differs_by_its_rounding_only(make_lora: MakeLoRA, dtype: torch.dtype) -> None:
    lora, mixed = make_lora(), case(slots=3, runs=[(0, 60), (1, 1), (NOBODY, 2), (2, 1), (1, 1)])
    module, x, y = mixed.module(), mixed.noise(65, INPUTS).to(dtype), mixed.noise(65, 32).to(dtype)
    module.a, module.b = (tuple(t.to(dtype) for t in side) for side in (module.a, module.b))
    announce(lora, mixed)
    wanted = y.double() + module.deltas(x, mixed.rows)
    torch.testing.assert_close(module.add(lora, y, x).double(), wanted, rtol=2e-2, atol=1e-1)


# ---------------------------------------------------------------------------------------------------------------------
# The engine, against PEFT
# ---------------------------------------------------------------------------------------------------------------------

TOKENS = 24
SETTINGS = Settings(
    max_loras=6,
    max_cpu_loras=6,
    max_lora_rank=64,
    max_model_len=256,
    max_batched_tokens=64,  # long prompts take several steps, beside others' tokens
    max_concurrency=32,
    kv_cache_gib=0.25,
)
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "rank 1": {"r": 1, "lora_alpha": 2, "target_modules": LINEAR},
    "rank 8": {"r": 8, "lora_alpha": 16, "target_modules": LINEAR},
    "rank 64, rsLoRA": {"r": 64, "lora_alpha": 4, "use_rslora": True, "target_modules": LINEAR},
    "two modules": {"r": 8, "lora_alpha": 16, "target_modules": ["v_proj", "down_proj"]},
    "a rank for each module": {
        "r": 5,
        "lora_alpha": 5,
        "target_modules": LINEAR,
        "rank_pattern": {"q_proj": 40, "down_proj": 2},
        "alpha_pattern": {"up_proj": 9},
    },
    "vocabulary": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "embed_tokens", "lm_head"]},
}
EVERYONE = [None, *ADAPTERS]
CHOICES = tuple(range(40, 552, 4))
SCORED = Sampling(max_tokens=1, choices=CHOICES)
WRITTEN = Sampling(max_tokens=TOKENS)
Request = tuple[str | None, list[int]]


@dataclass(frozen=True)
class Peft:
    """PEFT's own answers, in double precision: what is compared is the engine's rounding alone."""

    models: dict[str | None, Any]
    folders: dict[str, Path]

    @torch.no_grad()
    def scores(self, adapter: str | None, prompt: list[int]) -> torch.Tensor:
        logits = self.models[adapter](input_ids=torch.tensor([prompt])).logits[0, -1]
        return logits.log_softmax(-1)[list(CHOICES)]

    @torch.no_grad()
    def continuation(self, adapter: str | None, prompt: list[int]) -> tuple[list[int], float]:
        """Return the greedy continuation, and by how much the closest of its decisions was taken."""
        ids = torch.tensor([prompt])
        answer = self.models[adapter].generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        first, second = torch.stack(answer.logits).topk(2).values.unbind(-1)
        return answer.sequences[0, len(prompt) :].tolist(), float((first - second).min())


@pytest.fixture(scope="module")
def peft(tiny: Base, tmp_path_factory: pytest.TempPathFactory) -> Peft:
    """Adapters as PEFT makes and saves them, with A and B at random."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(tiny.folder, dtype=torch.float32)

    models: dict[str | None, Any] = {None: base().double().eval()}
    folders: dict[str, Path] = {}
    for seed, (name, config) in enumerate(ADAPTERS.items()):
        torch.manual_seed(seed)
        model = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", **config))
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(parameter, std=0.1)
        folders[name] = tmp_path_factory.mktemp("adapters") / name
        model.save_pretrained(folders[name])
        models[name] = model.double().eval()
    return Peft(models, folders)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=[6, 2], ids=["a slot for each adapter", "two slots for six adapters"])
async def engine(request: pytest.FixtureRequest, tiny: Base, peft: Peft) -> AsyncIterator[VllmEngine]:
    made = VllmEngine(SETTINGS.model_copy(update={"max_loras": request.param}), tiny)
    await made.start()
    try:
        for name, folder in peft.folders.items():
            await made.load(name, folder)
        yield made
    finally:
        await made.stop()


async def answer(engine: VllmEngine, request: Request, sampling: Sampling) -> Chunk:
    adapter, prompt = request
    async with aclosing(engine.generate(prompt, sampling, adapter)) as chunks:
        (chunk,) = [chunk async for chunk in chunks]
        return chunk


async def answers(engine: VllmEngine, requests: Iterable[Request], sampling: Sampling) -> list[Chunk]:
    """Ask all at once."""
    return await asyncio.gather(*(answer(engine, request, sampling) for request in requests))


def prompt_of(length: int, source: random.Random) -> list[int]:
    return [source.randrange(3, VOCABULARY) for _ in range(length)]


def mixed(count: int, seed: int, names: Sequence[str | None] = EVERYONE) -> list[Request]:
    """Return shuffled requests of ``names`` in turn, 3 to 200 tokens long."""
    source = random.Random(seed)
    requests = [(names[n % len(names)], prompt_of(source.randint(3, 200), source)) for n in range(count)]
    return source.sample(requests, count)


def check_scores(peft: Peft, requests: Sequence[Request], chunks: Sequence[Chunk]) -> None:
    for number, ((adapter, prompt), chunk) in enumerate(zip(requests, chunks, strict=True)):
        got = torch.tensor([chunk.logprobs[token] for token in CHOICES], dtype=torch.double)
        worst = float((got - peft.scores(adapter, prompt)).abs().max())
        assert worst < 1e-4, f"request {number}, {adapter or 'base'}, {len(prompt)} tokens"


def check_texts(peft: Peft, requests: Sequence[Request], chunks: Sequence[Chunk], base: Base) -> None:
    tokenizer = Tokenizer.from_file(str(base.folder / "tokenizer.json"))
    compared = 0
    for (adapter, prompt), chunk in zip(requests, chunks, strict=True):
        tokens, decided_by = peft.continuation(adapter, prompt)
        if decided_by < 1e-4:
            continue  # a tie: float32 may take the other token, and all that follows from it
        stream = decoders.DecodeStream(ids=prompt, skip_special_tokens=True)
        assert chunk.text == "".join(stream.step(tokenizer, token) or "" for token in tokens), adapter or "base"
        assert chunk.tokens == len(tokens)
        compared += 1
    assert compared >= 0.8 * len(requests), "too many ties to tell anything"


def test_the_adapters_differ_by_far_more_than_what_is_allowed_below(peft: Peft) -> None:
    prompt = prompt_of(40, random.Random(0))
    scores = torch.stack([peft.scores(name, prompt) for name in EVERYONE])
    apart = (scores[:, None] - scores[None]).abs().amax(-1)
    assert bool((apart + torch.eye(len(EVERYONE)) > 0.5).all())


@pytest.mark.parametrize("adapter", EVERYONE, ids=str)
async def test_one_request_is_answered_as_by_peft(engine: VllmEngine, peft: Peft, adapter: str | None) -> None:
    for length in (3, 50, 200):
        request = adapter, prompt_of(length, random.Random(length))
        check_scores(peft, [request], [await answer(engine, request, SCORED)])


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_mixed_batch_is_answered_as_by_peft(engine: VllmEngine, peft: Peft, seed: int) -> None:
    requests = mixed(40, seed)
    check_scores(peft, requests, await answers(engine, requests, SCORED))


async def test_prompts_seen_before_are_answered_as_by_peft(engine: VllmEngine, peft: Peft) -> None:
    # What is kept of a prompt is kept for one adapter: the same tokens mean other things to another.
    prompt = prompt_of(150, random.Random(3))
    requests = [(name, prompt[:length]) for length in (150, 100) for name in EVERYONE]
    for _ in range(3):
        check_scores(peft, requests, await answers(engine, requests, SCORED))


async def test_a_mixed_batch_is_continued_token_for_token_as_by_peft(
    engine: VllmEngine, peft: Peft, tiny: Base
) -> None:
    requests = mixed(3 * len(EVERYONE), seed=4)
    check_texts(peft, requests, await answers(engine, requests, WRITTEN), tiny)


async def test_the_base_beside_every_adapter_answers_as_it_does_alone(engine: VllmEngine) -> None:
    # Stock CPU kernels take "no adapter" for the last slot, which here is filled.
    requests: list[Request] = [(None, prompt_of(length, random.Random(length))) for length in (5, 30, 200)]
    others = mixed(24, seed=5, names=list(ADAPTERS))
    alone = [await answer(engine, request, SCORED) for request in requests]
    together = await answers(engine, [*others[:12], *requests, *others[12:]], SCORED)
    for before, beside in zip(alone, together[12:15], strict=True):
        assert beside.logprobs == pytest.approx(before.logprobs, abs=1e-5, rel=0)


async def test_adapters_that_are_asked_again_and_again_stay_themselves(engine: VllmEngine, peft: Peft) -> None:
    # With fewer slots than adapters, vLLM writes them into each other's slots all the time.
    for seed in range(10, 16):
        requests = mixed(2 * len(EVERYONE), seed)
        check_scores(peft, requests, await answers(engine, requests, SCORED))


@pytest.mark.parametrize("seed", range(20, 25))
async def test_whatever_comes_together_is_answered_as_by_peft(
    engine: VllmEngine, peft: Peft, tiny: Base, seed: int
) -> None:
    source = random.Random(seed)
    names = source.sample(EVERYONE, source.randint(1, len(EVERYONE)))
    scored, written = mixed(source.randint(1, 24), seed, names), mixed(source.randint(1, 12), seed + 100, names)
    scores, texts = await asyncio.gather(answers(engine, scored, SCORED), answers(engine, written, WRITTEN))
    check_scores(peft, scored, scores)
    check_texts(peft, written, texts, tiny)
