"""Requests and responses: the public contract, as documented by OpenAPI."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StrictBool,
    StrictInt,
    StrictStr,
    model_validator,
)
from pydantic_core import CoreSchema

from adapters.releases import Serving, Share
from adapters.tasks import Kind

MAX_INPUTS = 256
REFERENCE_HELP = "`name` (what is released), `name@4` (exactly that version) or `name@canary`"


def _unicode(text: str) -> str:
    """JSON can spell half a surrogate pair, which is no text and cannot be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds half a surrogate pair; send valid Unicode") from None
    return text


String = Annotated[StrictStr, AfterValidator(_unicode)]
Text = Annotated[String, Field(description="the text to work on")]
Reference = Annotated[String, Field(min_length=1, max_length=100, description=REFERENCE_HELP)]


class Request(BaseModel):
    """Unknown fields are refused: a misspelt parameter must not be ignored."""

    model_config = ConfigDict(extra="forbid")


class Parameters(Request):
    model_config = ConfigDict(frozen=True)  # so the default is one object, not a deep copy for each request

    max_words: StrictInt | None = Field(None, ge=1, le=2000, description="summaries: at most so many words")
    truncate: StrictBool = Field(True, description="cut a text that is too long; false refuses it")
    long: Literal["cut", "chunks"] | None = Field(
        None,
        description="summaries of texts that do not fit: cut them, or summarize parts and then their summaries; "
        "default: as the adapter was trained",
    )


class Inputs(Request):
    """One text or many."""

    input: Text | None = None
    inputs: Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)] | None = None
    parameters: Parameters = Parameters()
    caller: Annotated[String, Field(max_length=200)] | None = Field(
        None, description="keeps a canary choice the same for one user; default: the API key"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.input is None) == (self.inputs is None):
            raise ValueError("give either 'input' or 'inputs'")
        return self

    @property
    def texts(self) -> list[str]:
        return self.inputs if self.inputs is not None else [self.input or ""]


class Asked(Inputs):
    """Of an adapter. ``model`` names it as well: routers read that, whatever they stand before."""

    @model_validator(mode="before")
    @classmethod
    def _named_by_model(cls, content: Any) -> Any:
        if not isinstance(content, dict) or "model" not in content:
            return content
        rest = {key: value for key, value in content.items() if key != "model"}
        if rest.get("adapter") is not None:
            raise ValueError("'model' is another name of 'adapter'; give one of them")
        return {**rest, "adapter": content["model"]}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler.resolve_ref_schema(handler(core))
        properties, required = schema["properties"], schema.get("required", [])
        properties["model"] = {**properties["adapter"], "title": "Model", "description": "another name of `adapter`"}
        if "adapter" in required:
            required.remove("adapter")
            schema["oneOf"] = [{"required": ["adapter"]}, {"required": ["model"]}]
        else:
            schema["not"] = {"required": ["adapter", "model"]}
        return schema


class PredictRequest(Asked):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"adapter": "sentiment", "input": "A moving, beautifully acted film."},
                {"adapter": "one-line-summary@1", "inputs": ["…", "…"], "parameters": {"max_words": 12}},
            ]
        }
    )

    adapter: Reference
    stream: StrictBool = Field(False, description="summaries and answers in words, of one `input`: server-sent events")


class ClassifyRequest(Asked):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"adapter": "sentiment", "input": "The plot has holes a bus could drive through."},
                {"labels": ["sports", "politics"], "input": "The coach praised the goalkeeper."},
            ]
        }
    )

    adapter: Reference | None = None
    labels: Annotated[list[Annotated[String, Field(min_length=1, max_length=100)]], Field(max_length=128)] | None = (
        Field(None, description="without an adapter: classify zero-shot with the base model")
    )

    @model_validator(mode="after")
    def _adapter_or_labels(self) -> Self:
        if (self.adapter is None) == (self.labels is None):
            raise ValueError("give either 'adapter' or, to classify zero-shot, 'labels'")
        if self.labels is not None and len({label.strip() for label in self.labels} - {""}) < max(2, len(self.labels)):
            raise ValueError("'labels' needs two or more different labels")
        return self


class SummarizeRequest(PredictRequest):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"adapter": "one-line-summary", "input": "…", "stream": True}]}
    )


class AdapterUsed(BaseModel):
    """Exactly what answered."""

    name: str
    version: int
    channel: Literal["stable", "canary", "pinned"]
    digest: str


class Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Classification(BaseModel):
    label: str
    score: float = Field(description="the label's share; `scores` sum to 1")
    scores: dict[str, float]
    truncated: bool | None = Field(None, description="true where the text was cut to fit")

    @property
    def said(self) -> str:
        return self.label


class Summary(BaseModel):
    summary: str
    finish_reason: Literal["stop", "length"]
    truncated: bool | None = Field(None, description="true where the text was cut to fit")
    chunks: int | None = Field(None, description="in how many parts a long text was read, if it was")

    @property
    def said(self) -> str:
        return self.summary


class Generation(BaseModel):
    answer: str
    finish_reason: Literal["stop", "length"]
    truncated: bool | None = Field(None, description="true where the text was cut to fit")

    @property
    def said(self) -> str:
        return self.answer


class Problem(BaseModel):
    """problem+json (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str | None = None


class ItemError(BaseModel):
    """In the place of an output whose input could not be answered."""

    error: Problem


class Prediction(BaseModel):
    id: str = Field(examples=["pred_01JD0000000000000000000000"])
    adapter: AdapterUsed | None = Field(None, description="null: the base model")
    task: Kind
    model: str
    outputs: list[Classification | Summary | Generation | ItemError]
    usage: Usage


class FeedbackRequest(Request):
    """Exactly one of `label`, `correct` and `better`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"id": "pred_01JD0000000000000000000000", "label": "negative"}]}
    )
    id: Annotated[String, Field(max_length=64)] = Field(description="the prediction's")
    index: StrictInt = Field(0, ge=0, le=255, description="which of its outputs")
    label: Annotated[String, Field(min_length=1, max_length=200)] | None = Field(
        None, description="what the answer should have been"
    )
    correct: StrictBool | None = Field(None, description="whether it was right, where there is no label to name")
    better: Annotated[String, Field(min_length=1, max_length=10_000)] | None = Field(
        None, description="a better summary, or answer in words"
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for value in (self.label, self.correct, self.better)) != 1:
            raise ValueError("send 'label', 'correct' or 'better', one of them")
        return self


class FeedbackTaken(BaseModel):
    id: str
    adapter: str
    version: int
    correct: bool


class VersionView(BaseModel):
    version: int
    state: Literal["available", "loading", "resident", "draining", "failed", "retired"]
    reason: str | None = None
    digest: str | None = None
    created_at: str | None = None
    rank: int | None = None
    base: str | None = None
    metrics: dict[str, Any] | None = None


class AdapterView(BaseModel):
    name: str
    description: str = ""
    task: Kind | None = None
    labels: list[str] | None = None
    stable: int | None = Field(None, description="the version released under the bare name")
    canary: Share | None = None
    shadow: Share | None = None
    generation: int = Field(0, description="the newest release; 0 where nothing is released")
    served_generation: int = Field(0, description="the release this replica serves: behind where one failed to load")
    versions: list[VersionView]


class ServerView(BaseModel):
    """What this replica was started for: an adapter beyond it cannot be served here."""

    base: str
    base_digest: str
    max_lora_rank: int
    max_model_len: int
    max_resident: int


class AdapterList(BaseModel):
    server: ServerView
    adapters: list[AdapterView]
    next: str | None = Field(None, description="where there are more: ask with `after` set to it")


class RollbackRequest(Request):
    expected_generation: StrictInt | None = Field(
        None,
        ge=0,
        le=999_999_999,
        description="refuse with 409 unless this is the newest generation (0: nothing is released yet)",
    )
    why: Annotated[String, Field(max_length=1000)] = Field("", description="kept in the release's record")


class ReleaseRequest(Serving, RollbackRequest):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"stable": 1, "expected_generation": 1, "why": "better on held-out reviews"}]}
    )

    @property
    def serving(self) -> Serving:
        return Serving.model_construct(**{field: getattr(self, field) for field in Serving.model_fields})


class ReleaseView(Serving):
    name: str
    generation: int
    by: str
    at: datetime
    why: str = ""
