"""What the routes about webhooks answer, as the OpenAI API has it, with `potluck` beside it."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

Seconds = int  # since the epoch


class EventTypes(TypedDict):
    object: Literal["list"]
    data: list[str]


class EndpointFacts(TypedDict):
    why_off: str | None


class EndpointBody(TypedDict):
    """`signing_secret`: shown once, where it is made."""

    id: str
    object: Literal["webhook_endpoint"]
    created_at: Seconds
    updated_at: Seconds
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str
    signing_secret: NotRequired[str]
    potluck: EndpointFacts


class DeliveryBody(TypedDict):
    event: str
    type: str
    state: str
    attempts: int
    status: int | None
    why: str | None
    created_at: str
    next_at: str | None


class DeliveryList(TypedDict):
    object: Literal["list"]
    data: list[DeliveryBody]


class EndpointTested(TypedDict):
    object: Literal["webhook_endpoint.test"]
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: Literal[True]
