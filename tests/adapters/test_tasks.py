"""A Task builds the prompt, reads the answer and scores it: the same in training, evaluation and serving."""

from __future__ import annotations

import math
import re
from itertools import product
from string import ascii_uppercase
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from adapters.base_model import Base
from adapters.errors import InputTooLong, InvalidAdapter
from adapters.tasks import KINDS, ClassificationTask, Completion, SummarizationTask
from adapters.tasks.base import normalized
from adapters.tasks.chunks import in_chunks
from adapters.tasks.classification import MAX_LABELS, calibration_error, choose_tokens
from adapters.tokens import FileTokenizer

TASKS: dict[str, Any] = {"classification": ClassificationTask, "summarization": SummarizationTask}
BEFORE, AFTER = "Review:", "\nSentiment:"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# The session's tokenizer is read only: a property may share it between its examples.
properties = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> FileTokenizer:
    """A vocabulary with what every real one has: common words, and one and two capitals after a blank."""
    codes = ["".join(letters) for length in (1, 2) for letters in product(ascii_uppercase, repeat=length)]
    words = ["positive", "negative", "bad", "topic", "label", "Copyleft", "Limited", "Permissive", "stars", *codes]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        ["".join(f" {word}" for word in words)] * 3,
        trainers.BpeTrainer(vocab_size=2000, special_tokens=SPECIAL, initial_alphabet=alphabet),
    )
    folder = tmp_path_factory.mktemp("vocabulary")
    tokenizer.save(str(folder / "tokenizer.json"))
    return FileTokenizer(folder)


def make(kind: str, base: Base, **limits: int) -> Any:
    template = f"{BEFORE} {{text}}{AFTER}"
    if kind == "classification":
        return ClassificationTask.of(template, ["positive", "negative"], base.tokenizer, **limits)
    return SummarizationTask.of(template, max_answer_tokens=12, **limits)


def frame(base: Base) -> tuple[list[int], list[int]]:
    """Return the ids of what stands before and after the text."""
    return base.tokenizer.encode(BEFORE, start=True), base.tokenizer.encode(AFTER)


STORY = "Dr. Smith paid 3.5 million. Did he? Yes! " * 40 + "word " * 300 + "x" * 500


@properties
@given(text=st.text(max_size=300), limit=st.integers(8, 60))
def test_parts_of_a_long_text_fit_and_leave_nothing_out(tiny: Base, text: str, limit: int) -> None:
    for whole in (text, text + STORY, STORY.replace(" ", "\n")):
        task = make("summarization", tiny, max_input_tokens=limit).model_copy(update={"long": "chunks"})
        parts = task.parts(whole, tiny.tokenizer)
        assert not any(task.prompt(part, tiny.tokenizer).truncated for part in parts)
        assert "".join("".join(parts).split()) == "".join(whole.split())


def test_parts_end_where_sentences_do(tiny: Base) -> None:
    task = make("summarization", tiny, max_input_tokens=40).model_copy(update={"long": "chunks"})
    parts = task.parts("Dr. Smith saw 3.5 million birds. He was glad. " * 8, tiny.tokenizer)
    assert len(parts) > 1
    assert all(part.startswith(("Dr.", "He")) and part.endswith(("birds.", "glad.")) for part in parts)


def test_a_long_line_is_divided_in_time_that_grows_with_its_length_only() -> None:
    pieces = in_chunks("A sentence about it. " * 20_000, 2000, len)
    assert 210 <= len(pieces) <= 230


@given(st.text())
@example("e\u00ad\u0301")  # an accent that a soft hyphen keeps from its letter
@example(" \u00a0\n \n\u2003\n\n x")
def test_normalized_text_stays_as_it_is(text: str) -> None:
    assert normalized(normalized(text)) == normalized(text)


def test_normalized_text_is_the_same_however_it_was_typed(tiny: Base) -> None:
    task = make("classification", tiny).model_copy(update={"normalize": True})
    typed = "a\u00a0ﬁlm \u200b that   is\tcafe\u0301\u00ad\n\n\n\nslow"
    assert task.prompt(typed, tiny.tokenizer).ids == task.prompt("a film that is café\n\nslow", tiny.tokenizer).ids


def completion_of(task: ClassificationTask, logprobs: list[float]) -> Completion:
    return Completion(logprobs={label.token_id: value for label, value in zip(task.labels, logprobs, strict=True)})


class TestPrompt:
    @properties
    @given(
        kind=st.sampled_from(list(TASKS)),
        texts=st.lists(st.text(alphabet=st.characters(codec="utf-8"), max_size=60), max_size=5),
        room=st.none() | st.integers(1, 60),
        cut=st.booleans(),
    )
    def test_of_many_texts_is_that_of_each(
        self, tiny: Base, kind: str, texts: list[str], room: int | None, cut: bool
    ) -> None:
        task = make(kind, tiny, max_input_tokens=12)
        for text, made in zip(texts, task.prompts(texts, tiny.tokenizer, room=room, cut=cut), strict=True):
            if isinstance(made, InputTooLong):
                with pytest.raises(InputTooLong, match=re.escape(str(made))):
                    task.prompt(text, tiny.tokenizer, room=room, cut=cut)
            else:
                assert made == task.prompt(text, tiny.tokenizer, room=room, cut=cut)

    @properties
    @given(texts=st.lists(st.text(alphabet=st.characters(codec="utf-8"), max_size=60), max_size=5))
    def test_is_of_the_same_tokens_in_one_call_or_many(self, tiny: Base, texts: list[str]) -> None:
        assert tiny.tokenizer.encode_all(texts) == [tiny.tokenizer.encode(text) for text in texts]

    @properties
    @given(
        kind=st.sampled_from(list(TASKS)),
        text=st.text(alphabet=st.characters(codec="utf-8"), max_size=300),
        limit=st.integers(8, 60),
        room=st.none() | st.integers(1, 120),
    )
    def test_is_instruction_text_and_answer_slot_whatever_is_cut(
        self, tiny: Base, kind: str, text: str, limit: int, room: int | None
    ) -> None:
        task = make(kind, tiny, max_input_tokens=limit)
        head, tail = frame(tiny)
        body = tiny.tokenizer.encode(" " + text.strip())
        try:
            prompt = task.prompt(text, tiny.tokenizer, room=room)
        except InputTooLong:
            assert room is not None
            assert room <= len(head) + len(tail) + task.answer_tokens, "refused only where not one token fits"
            return
        kept = prompt.ids[len(head) : len(prompt.ids) - len(tail)]
        assert prompt.ids == [*head, *kept, *tail]
        assert len(kept) <= limit
        assert room is None or len(prompt.ids) + task.answer_tokens <= room
        assert prompt.input_tokens == len(body)
        assert prompt.truncated == (len(kept) < len(body))
        if not prompt.truncated:
            assert kept == body

    @properties
    @given(words=st.integers(30, 200), limit=st.integers(8, 29), share=st.sampled_from([None, 0, 0.25, 0.75, 1]))
    def test_of_a_long_text_a_classifier_reads_head_and_tail(
        self, tiny: Base, words: int, limit: int, share: float | None
    ) -> None:
        text = " ".join(str(number) for number in range(words))
        said = {} if share is None else {"head_share": share}
        task = make("classification", tiny, max_input_tokens=limit, **said)
        head, tail = frame(tiny)
        body = tiny.tokenizer.encode(" " + text)
        kept = task.prompt(text, tiny.tokenizer).ids[len(head) : -len(tail)]
        first = round(limit * (0.25 if share is None else share))  # as those that were published before it was said
        assert kept == body[:first] + body[len(body) - (limit - first) :]
        assert len(kept) == limit

    @properties
    @given(words=st.integers(30, 200), limit=st.integers(8, 29))
    def test_of_a_long_text_a_summarizer_reads_the_lead(self, tiny: Base, words: int, limit: int) -> None:
        text = " ".join(str(number) for number in range(words))
        task = make("summarization", tiny, max_input_tokens=limit)
        head, tail = frame(tiny)
        kept = task.prompt(text, tiny.tokenizer).ids[len(head) : -len(tail)]
        assert kept == tiny.tokenizer.encode(" " + text)[:limit]

    def test_one_token_of_room_for_the_text_is_used(self, tiny: Base) -> None:
        task = make("classification", tiny)
        head, tail = frame(tiny)
        prompt = task.prompt("dull and slow and long", tiny.tokenizer, room=len(head) + len(tail) + 1 + 1)
        assert prompt.truncated
        assert len(prompt.ids) == len(head) + 1 + len(tail)

    @pytest.mark.parametrize("kind", TASKS)
    @pytest.mark.parametrize("room", [None, 40])
    def test_is_refused_rather_than_cut_on_request(self, tiny: Base, kind: str, room: int | None) -> None:
        task = make(kind, tiny, max_input_tokens=60)
        with pytest.raises(InputTooLong, match=r"the text has \d+ tokens and \d+ fit"):
            task.prompt("word " * 100, tiny.tokenizer, room=room, cut=False)
        assert not task.prompt("word", tiny.tokenizer, room=room, cut=False).truncated

    @pytest.mark.parametrize("kind", TASKS)
    def test_names_the_context_that_not_even_the_instruction_fits(self, tiny: Base, kind: str) -> None:
        with pytest.raises(InputTooLong, match="the instruction alone fills the context of 5 tokens"):
            make(kind, tiny).prompt("word", tiny.tokenizer, room=5)

    @pytest.mark.parametrize("token", SPECIAL)
    @properties
    @given(before=st.text(max_size=20), after=st.text(max_size=20))
    def test_text_never_becomes_a_control_token(self, tiny: Base, token: str, before: str, after: str) -> None:
        control = {tiny.tokenizer.vocabulary()[name] for name in SPECIAL}
        head, tail = frame(tiny)
        prompt = make("summarization", tiny).prompt(f"{before}{token}{after}", tiny.tokenizer)
        kept = prompt.ids[len(head) : -len(tail)]
        assert not control & set(kept)
        assert token in tiny.tokenizer.decode(kept)

    def test_does_not_depend_on_blanks_around_the_text(self, tiny: Base) -> None:
        task = make("classification", tiny)
        assert task.prompt(" \n dull \t", tiny.tokenizer) == task.prompt("dull", tiny.tokenizer)

    def test_of_a_template_without_a_blank_has_none(self, tiny: Base) -> None:
        task = SummarizationTask.of("Text:\n{text}\nSummary:")
        assert tiny.tokenizer.decode(task.prompt("dull", tiny.tokenizer).ids) == "Text:\ndull\nSummary:"


class TestTemplate:
    @pytest.mark.parametrize(
        ("template", "reason"),
        [
            ("Review:\nSentiment:", "exactly once"),
            ("{text} {text}:", "exactly once"),
            ("", "exactly once"),
            ("Review: {text}", "ends with the answer slot"),
            ("Review: {text}\nSentiment: ", "ends with the answer slot"),
            ("x" * 10_000 + "{text}:", "at most 10000"),
        ],
    )
    def test_is_refused_with_the_reason(self, tiny: Base, template: str, reason: str) -> None:
        with pytest.raises(InvalidAdapter, match=reason):
            ClassificationTask.of(template, ["good", "bad"], tiny.tokenizer)
        with pytest.raises(InvalidAdapter, match=reason):
            SummarizationTask.of(template)

    def test_may_contain_other_braces(self, tiny: Base) -> None:
        task = SummarizationTask.of('JSON: {"a": {b}} {text}\nSummary:')
        assert '{"a": {b}} x' in tiny.tokenizer.decode(task.prompt("x", tiny.tokenizer).ids)


class TestLabelTokens:
    @pytest.mark.parametrize(
        "labels",
        [
            ["positive", "negative"],
            ["Copyleft", "Copyleft Limited", "Copyleft Unlimited", "Copyright"],
            ["a", "aa", "aaa", "aaaa", "aaaaa"],
            [f"topic {number}" for number in range(100)],
            [f"label-{number:03d}" for number in range(MAX_LABELS)],
            ["ja", "日本", "日本語", "日", "🎬", "🎭"],
        ],
        ids=["words", "prefixes", "repetitions", "hundred", "most", "unicode"],
    )
    def test_are_one_and_distinct_for_each_label(self, english: FileTokenizer, labels: list[str]) -> None:
        chosen = choose_tokens(labels, english)
        assert [label.name for label in chosen] == labels
        assert len({label.token_id for label in chosen}) == len(labels)
        assert set(SPECIAL).isdisjoint(
            token for token, number in english.vocabulary().items() if number in {x.token_id for x in chosen}
        )

    @properties
    @given(
        labels=st.lists(
            st.text(alphabet="abAB -", min_size=1, max_size=6).filter(lambda label: label.strip()),
            min_size=2,
            max_size=40,
            unique=True,
        )
    )
    def test_are_distinct_for_any_labels_that_begin_alike(self, english: FileTokenizer, labels: list[str]) -> None:
        task = ClassificationTask.of("{text}:", labels, english)
        assert len({label.token_id for label in task.labels}) == len(labels)

    def test_are_the_first_token_of_the_label_itself_where_that_is_free(self, english: FileTokenizer) -> None:
        for label in choose_tokens(["positive", "negative"], english):
            assert english.encode(" " + label.name)[0] == label.token_id

    @pytest.mark.parametrize(
        ("labels", "reason"),
        [
            (["same", "same"], "label names must be distinct"),
            (["only"], "at least 2 items"),
            (["good", ""], "a label is empty"),
            (["good", "  "], "a label is empty"),
            (["good", "b" * 201], "at most 200 characters"),
            ([str(number) for number in range(MAX_LABELS + 1)], "at most 512 items"),
        ],
    )
    def test_of_impossible_label_sets_are_refused(self, english: FileTokenizer, labels: list[str], reason: str) -> None:
        with pytest.raises(InvalidAdapter, match=reason):
            ClassificationTask.of("{text}:", labels, english)

    def test_that_are_not_distinct_are_refused_in_a_stored_task(self) -> None:
        stored = {"template": {"text": "{text}:"}, "labels": [{"name": n, "token_id": 7} for n in ("good", "bad")]}
        with pytest.raises(ValueError, match="label tokens must be distinct"):
            ClassificationTask.model_validate(stored)


class TestZeroShot:
    def test_prompt_says_what_the_labels_are(self, english: FileTokenizer) -> None:
        task = ClassificationTask.zero_shot(["positive", "negative"], english)
        prompt = english.decode(task.prompt("dull", english).ids)
        assert "positive, negative" in prompt
        assert prompt.endswith("Text: dull\nLabel:")

    def test_scores_the_first_token_of_each_label(self, english: FileTokenizer) -> None:
        task = ClassificationTask.zero_shot(["positive", "negative"], english)
        assert [label.token_id for label in task.labels] == [
            english.encode(" positive")[0],
            english.encode(" negative")[0],
        ]

    def test_letters_labels_that_begin_alike(self, english: FileTokenizer) -> None:
        labels = ["Copyleft", "Copyleft Limited", "Permissive"]
        task = ClassificationTask.zero_shot(labels, english)
        prompt = english.decode(task.prompt("text", english).ids)
        assert "A. Copyleft\nB. Copyleft Limited\nC. Permissive\n" in prompt
        assert [label.name for label in task.labels] == labels
        assert [label.token_id for label in task.labels] == [english.encode(f" {x}")[0] for x in "ABC"]

    def test_letters_labels_whose_first_token_is_no_part_of_them(self, english: FileTokenizer) -> None:
        blank = english.encode(" ")
        assert english.encode(" 5 stars")[:1] == blank, "the label's own first token comes second here"
        task = ClassificationTask.zero_shot(["5 stars", "bad"], english)
        assert "A. 5 stars\nB. bad" in task.template.text

    @pytest.mark.parametrize(
        ("labels", "reason"),
        [
            (["positive", "positive"], "label names must be distinct"),
            (["positive"], "at least 2 items"),
            (["positive", " "], "a label is empty"),
            (["positive", "{text}"], "a label cannot contain"),
            ([f"same {number}" for number in range(27)], "give at most 26"),
            ([f"{chr(97 + n)}{'x' * 199}" for n in range(26)] + [f"{n}" + "y" * 199 for n in range(26)], "at most"),
        ],
    )
    def test_refuses_labels_that_cannot_be_asked_for(
        self, english: FileTokenizer, labels: list[str], reason: str
    ) -> None:
        with pytest.raises(InvalidAdapter, match=reason):
            ClassificationTask.zero_shot(labels, english)


class TestReadingAClass:
    @properties
    @given(
        logprobs=st.lists(st.floats(-80, 0), min_size=2, max_size=12),
        temperature=st.floats(0.05, 20),
    )
    def test_scores_sum_to_one_and_follow_the_logprobs(
        self, tiny: Base, logprobs: list[float], temperature: float
    ) -> None:
        labels = [f"label {number}" for number in range(len(logprobs))]
        task = ClassificationTask.of("{text}:", labels, tiny.tokenizer, temperature=temperature)
        answer = task.read(completion_of(task, logprobs), {})
        scores = [answer["scores"][label] for label in labels]
        assert math.isclose(sum(scores), 1, abs_tol=1e-9)
        assert all(0 <= score <= 1 for score in scores)
        for a, b in zip(range(len(logprobs)), range(1, len(logprobs)), strict=False):
            assert logprobs[a] < logprobs[b] or scores[a] >= scores[b]
        assert answer["score"] == max(scores) == answer["scores"][answer["label"]]
        assert logprobs[labels.index(answer["label"])] >= max(logprobs) - 1e-9 * temperature

    def test_scores_are_the_probabilities_among_the_labels(self, sentiment_task: ClassificationTask) -> None:
        answer = sentiment_task.read(completion_of(sentiment_task, [math.log(0.3), math.log(0.1)]), {})
        assert answer["label"] == "positive"
        assert answer["scores"] == pytest.approx({"positive": 0.75, "negative": 0.25})

    def test_temperature_softens_scores_without_changing_the_label(self, tiny: Base) -> None:
        labels = ["positive", "negative"]
        sharp, soft = (ClassificationTask.of("{text}:", labels, tiny.tokenizer, temperature=t) for t in (1.0, 2.0))
        logprobs = [math.log(0.2), math.log(0.8)]
        assert sharp.read(completion_of(sharp, logprobs), {})["score"] == pytest.approx(0.8)
        assert soft.read(completion_of(soft, logprobs), {})["score"] == pytest.approx(2 / 3)

    def test_a_label_that_the_model_rules_out_scores_zero(self, sentiment_task: ClassificationTask) -> None:
        answer = sentiment_task.read(completion_of(sentiment_task, [-1.0, -math.inf]), {})
        assert answer["scores"] == {"positive": 1.0, "negative": 0.0}

    def test_asks_for_one_token_and_every_label(self, sentiment_task: ClassificationTask) -> None:
        sampling = sentiment_task.sampling({})
        assert sampling.max_tokens == 1
        assert sampling.choices == tuple(label.token_id for label in sentiment_task.labels)


class TestReadingASummary:
    @pytest.mark.parametrize(
        ("text", "limit", "summary", "finish"),
        [
            (" A fast  tool.", None, "A fast  tool.", "stop"),
            ("one two three", 2, "one two", "length"),
            ("one two three", 3, "one two three", "stop"),
            ("one  two\nthree four", 3, "one  two\nthree", "length"),
            ("", 3, "", "stop"),
        ],
    )
    def test_keeps_to_max_words(self, text: str, limit: int | None, summary: str, finish: str) -> None:
        task = SummarizationTask.of("{text}:")
        assert task.read(Completion(text=text), {"max_words": limit}) == {"summary": summary, "finish_reason": finish}

    def test_says_that_the_engine_ran_out_of_tokens(self) -> None:
        task = SummarizationTask.of("{text}:")
        assert task.read(Completion(text="one two", finish_reason="length"), {})["finish_reason"] == "length"

    @given(words=st.integers(1, 500))
    def test_max_words_never_asks_for_more_than_the_task_allows(self, words: int) -> None:
        task = SummarizationTask.of("{text}:", max_answer_tokens=64)
        asked = task.sampling({"max_words": words}).max_tokens
        assert min(64, words) <= asked <= 64
        assert task.sampling({}).max_tokens == 64
        assert task.sampling({}).choices == ()


class TestTarget:
    def test_of_a_label_is_its_token(self, tiny: Base, sentiment_task: ClassificationTask) -> None:
        for label in sentiment_task.labels:
            assert sentiment_task.target(label.name, tiny.tokenizer, end=tiny.end_id) == [label.token_id]

    def test_of_an_unknown_label_is_refused(self, tiny: Base, sentiment_task: ClassificationTask) -> None:
        with pytest.raises(InvalidAdapter, match="'neutral' is not one of the labels"):
            sentiment_task.target("neutral", tiny.tokenizer, end=tiny.end_id)

    @given(answer=st.text(alphabet="ab c.", max_size=80), room=st.integers(1, 40))
    @properties
    def test_of_a_summary_ends_with_the_end_and_fits(self, tiny: Base, answer: str, room: int) -> None:
        task = SummarizationTask.of("{text}:", max_answer_tokens=room)
        ids = task.target(answer, tiny.tokenizer, end=tiny.end_id)
        assert ids[-1] == tiny.end_id
        assert tiny.end_id not in ids[:-1]
        assert len(ids) <= room
        assert ids[:-1] == tiny.tokenizer.encode(" " + answer.strip())[: room - 1]

    def test_of_a_summary_that_spells_a_control_token_has_one_end(self, tiny: Base) -> None:
        ids = SummarizationTask.of("{text}:").target("a <|im_end|> b", tiny.tokenizer, end=tiny.end_id)
        assert ids.count(tiny.end_id) == 1


class TestScoringClasses:
    def outputs(self, *answers: tuple[str, float]) -> list[dict[str, Any]]:
        return [{"label": label, "score": score} for label, score in answers]

    def test_counts_right_answers_per_class_and_in_a_confusion_matrix(self, sentiment_task: ClassificationTask) -> None:
        outputs = self.outputs(("positive", 0.9), ("positive", 0.9), ("negative", 0.9), ("negative", 0.9))
        scores = sentiment_task.score(outputs, ["positive", "negative", "negative", "negative"])
        assert scores["rows"] == 4
        assert scores["accuracy"] == 0.75
        # positive: precision 1/2, recall 1; negative: precision 1, recall 2/3
        assert scores["per_class"]["positive"] == pytest.approx(
            {"precision": 0.5, "recall": 1, "f1-score": 2 / 3, "support": 1}
        )
        assert scores["per_class"]["negative"]["f1-score"] == pytest.approx(0.8)
        assert scores["macro_f1"] == pytest.approx((2 / 3 + 0.8) / 2)
        assert scores["weighted_f1"] == pytest.approx((2 / 3 + 3 * 0.8) / 4)
        assert scores["confusion"] == {"labels": ["positive", "negative"], "counts": [[1, 0], [1, 2]]}

    def test_a_class_that_is_never_predicted_counts_as_zero(self, sentiment_task: ClassificationTask) -> None:
        scores = sentiment_task.score(self.outputs(("positive", 0.9), ("positive", 0.9)), ["positive", "negative"])
        assert scores["per_class"]["negative"]["f1-score"] == 0
        assert scores["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)

    @pytest.mark.parametrize(
        ("outputs", "references", "error"),
        [
            ([("a", 1.0), ("a", 1.0)], ["a", "a"], 0.0),
            ([("a", 1.0), ("a", 1.0)], ["b", "b"], 1.0),
            ([("a", 0.75)] * 4, ["a", "a", "a", "b"], 0.0),
            ([("a", 0.95), ("a", 0.95), ("a", 0.55)], ["a", "b", "a"], (abs(1.9 - 1) + abs(0.55 - 1)) / 3),
        ],
        ids=["sure and right", "sure and wrong", "calibrated", "two bins"],
    )
    def test_calibration_error_is_the_gap_between_confidence_and_accuracy(
        self, outputs: list[tuple[str, float]], references: list[str], error: float
    ) -> None:
        assert calibration_error(self.outputs(*outputs), references) == pytest.approx(error)


class TestScoringSummaries:
    @pytest.mark.parametrize(
        ("summary", "reference", "rouge1", "rouge2", "rouge_l"),
        [
            ("a fast text editor", "a fast text editor", 1, 1, 1),
            ("nothing shared", "a fast text editor", 0, 0, 0),
            ("", "a fast text editor", 0, 0, 0),
            # 3 of 4 words in both directions, one of three bigrams ("text editor"), longest common sequence 3
            ("small fast text editor", "one fast small text editor", 8 / 9, 2 / 7, 6 / 9),
            ("editors edited", "editor edits", 1, 1, 1),  # stemmed
        ],
        ids=["same", "other", "empty", "overlap", "stems"],
    )
    def test_are_rouge_f_measures(
        self, summary: str, reference: str, rouge1: float, rouge2: float, rouge_l: float
    ) -> None:
        scores = SummarizationTask.of("{text}:").score([{"summary": summary}], [reference])
        assert (scores["rouge1"], scores["rouge2"], scores["rougeL"]) == pytest.approx((rouge1, rouge2, rouge_l))

    def test_are_means_over_rows(self) -> None:
        outputs = [{"summary": "one two"}, {"summary": "a b c d"}]
        scores = SummarizationTask.of("{text}:").score(outputs, ["one two", "x"])
        assert scores == pytest.approx({"rows": 2, "rouge1": 0.5, "rouge2": 0.5, "rougeL": 0.5, "words": 3.0})


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    def test_says_what_is_asked_of_it(self, kind: str) -> None:
        task = KINDS[kind]
        assert task.model_fields["kind"].default == kind
        assert len(task.headings) == 2
        assert all((task.answer_key, task.merit_name, task.pipeline_tag, task.gate_metrics))

    def test_finds_the_reference_itself_the_best_answer(self, kind: str, tiny: Base) -> None:
        task = made_of(kind, tiny)
        outputs = [task.saying(said) for said in ("bug", "billing")]
        assert [task.answer(output) for output in outputs] == ["bug", "billing"]
        assert task.merits(outputs, ["bug", "bug"]) == [1.0, 0.0]
        assert task.score(outputs, ["bug", "bug"])["rows"] == 2

    def test_has_answers_to_choose_from_where_it_is_closed(self, kind: str, tiny: Base) -> None:
        task = made_of(kind, tiny)
        choices = task.sampling({}).choices
        assert task.closed is bool(task.answers) is bool(choices)
        assert len(task.answers) == len(choices)
        assert len(set(task.probe_choices(4096, 8))) == (len(choices) or 8)


def made_of(kind: str, base: Base) -> Any:
    if kind == "classification":
        return ClassificationTask.of("Text: {text}\nLabel:", ["billing", "bug"], base.tokenizer)
    return SummarizationTask.of("Text: {text}\nSummary:")
