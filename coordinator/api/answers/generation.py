"""What chat, completions and embeddings answer, as the OpenAI API has it, with `potluck` beside it."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

Seconds = int  # since the epoch
Micro = int  # microcredits


class ChargeFacts(TypedDict):
    """`charge` in microcredits; `job_ids` where several prompts were several jobs."""

    charge: Micro
    job_id: str
    job_ids: NotRequired[list[str]]
    state: NotRequired[str]


class ReasoningDetails(TypedDict):
    reasoning_tokens: int


class UsageBody(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: NotRequired[ReasoningDetails]
    potluck: ChargeFacts


class FunctionCalled(TypedDict):
    name: str
    arguments: str


class CallMade(TypedDict):
    id: str
    type: Literal["function"]
    function: FunctionCalled


class AnswerMessage(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: NotRequired[list[CallMade]]
    reasoning_content: NotRequired[str | None]


class TokenScore(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class ScoredToken(TokenScore):
    top_logprobs: list[TokenScore]


class ChatScores(TypedDict):
    content: list[ScoredToken]
    refusal: None


class ChatChoice(TypedDict):
    index: int
    message: AnswerMessage
    logprobs: ChatScores | None
    finish_reason: str | None


class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: Seconds
    model: str
    choices: list[ChatChoice]
    usage: UsageBody


class TextScores(TypedDict):
    """Offsets in code points of the output."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(TypedDict):
    index: int
    text: str
    logprobs: TextScores | None
    finish_reason: str | None


class TextCompletion(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: Seconds
    model: str
    choices: list[TextChoice]
    usage: UsageBody


class EmbeddingUsage(TypedDict):
    prompt_tokens: int
    total_tokens: int
    potluck: ChargeFacts


class EmbeddingBody(TypedDict):
    """`embedding`: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(TypedDict):
    object: Literal["list"]
    data: list[EmbeddingBody]
    model: str
    usage: EmbeddingUsage
