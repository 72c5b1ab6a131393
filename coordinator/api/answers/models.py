"""What the routes about models answer, as the OpenAI API has it, with `potluck` beside it."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

Seconds = int  # since the epoch


class ModelFacts(TypedDict):
    """`licence` of a base; the rest of a tuned model."""

    aliases: list[str]
    kinds: list[str]
    context_tokens: int
    licence: NotRequired[str]
    base: NotRequired[str]
    shared: NotRequired[bool]
    finetune: NotRequired[str]
    bytes: NotRequired[int]


class ModelBody(TypedDict):
    """`parent`: what a tuned model was tuned from."""

    id: str
    object: Literal["model"]
    created: Seconds
    owned_by: str
    parent: NotRequired[str]
    potluck: ModelFacts


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ModelBody]


class Deleted(TypedDict):
    id: str
    object: str
    deleted: Literal[True]
