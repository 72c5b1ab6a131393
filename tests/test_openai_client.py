"""The official client as anybody has it, with nothing but `base_url` and `api_key` changed, against a coordinator
and a worker that run as processes. What each field means is proved in test_api_openai.py; here, that the client
as it comes (retries and all) works with the pool as it is started.
"""

from collections.abc import Iterator

import openai
import pytest
from fixtures_pool import RealPool, free_port

MODEL = "emulator-small"
REQUESTS_A_MINUTE = 30  # of one member: each test has one of its own

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealPool]:
    """One pool for all tests, with the limit of requests that the pool's owner would set."""
    pool = RealPool(tmp_path_factory.mktemp("pool"))
    pool.variables |= {
        "POTLUCK_REQUESTS_PER_MINUTE": str(REQUESTS_A_MINUTE),
        "POTLUCK_WAIT_FOR_WORKER_S": "2",
    }
    pool.start_coordinator()
    try:
        pool.join("rig", "bob")
        flags = ["--engine", "emulator", "--models", MODEL, "--engine-option", "tpot_ms=1"]
        worker = pool.start_worker("rig", *flags, ready=False)
        worker.wait_for("model_ready")
        yield pool
    finally:
        pool.close()


def client(pool: RealPool, name: str, credit_line: int | None = None) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{pool.url}/v1", api_key=pool.member(name, credit_line).key)


def test_everything_that_can_be_asked(pool: RealPool) -> None:
    """Models, chat whole and as a stream, completions, embeddings."""
    asker = client(pool, "ada")
    assert MODEL in [model.id for model in asker.models.list()]
    assert asker.models.retrieve(MODEL).object == "model"
    whole = asker.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hello!"}], max_tokens=12, seed=4
    )
    text = whole.choices[0].message.content or ""
    assert len(text.split()) == 12
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12
    streamed = asker.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hello!"}], max_tokens=12, seed=4, stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == text
    completed = asker.completions.create(model=MODEL, prompt="Once upon", max_tokens=5, seed=1)
    assert len(completed.choices[0].text.split()) == 5
    embedded = asker.embeddings.create(model=MODEL, input=["one", "two", "one"])
    first, second, third = (item.embedding for item in embedded.data)
    assert first == third != second
    assert pool.ledger_sum() == 0


def test_a_wrong_key(pool: RealPool) -> None:
    wrong = openai.OpenAI(base_url=f"{pool.url}/v1", api_key="sk-potluck-wrong")
    with pytest.raises(openai.AuthenticationError) as raised:
        wrong.models.list()
    assert raised.value.code == "invalid_api_key"


def test_what_is_asked_wrongly(pool: RealPool) -> None:
    """Unknown model and parameter, and what is an admin's: each has its class, none is tried again."""
    asker = client(pool, "bea")
    with pytest.raises(openai.NotFoundError) as unknown:
        asker.completions.create(model="emulator-smal", prompt="x")
    assert MODEL in unknown.value.message
    with pytest.raises(openai.BadRequestError) as bad:
        asker.completions.create(model=MODEL, prompt="x", temperature=9)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        asker.completions.create(model=MODEL, prompt="x", max_tokens=10**7)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.PermissionDeniedError):
        asker.get(f"{pool.url}/pool/v1/members", cast_to=object)


def test_no_credit(pool: RealPool) -> None:
    """402 has no class of its own in the client."""
    with pytest.raises(openai.APIStatusError) as poor:
        client(pool, "cleo", credit_line=0).completions.create(model=MODEL, prompt="x")
    assert poor.value.status_code == 402
    assert poor.value.code == "insufficient_credits"


def test_too_many_requests(pool: RealPool) -> None:
    """The client is told how long to wait, and would; one that does not retry gets its class."""
    hasty = client(pool, "dora").with_options(max_retries=0)
    with pytest.raises(openai.RateLimitError) as limited:
        for _ in range(REQUESTS_A_MINUTE + 1):
            hasty.models.list()
    assert limited.value.code == "rate_limit_exceeded"
    assert 0 < int(limited.value.response.headers["retry-after"]) <= 60


def test_no_worker_is_left(pool: RealPool) -> None:
    """The last test of this pool: its worker goes, the answer is a 503, and nothing stays reserved."""
    asker = client(pool, "emma").with_options(max_retries=0)
    assert asker.completions.create(model=MODEL, prompt="x", max_tokens=2).choices[0].text
    pool.workers["rig"].stop()
    with pytest.raises(openai.InternalServerError) as gone:
        asker.completions.create(model=MODEL, prompt="x", max_tokens=2)
    assert gone.value.status_code == 503
    assert pool.members["emma"].balance()["reserved"] == 0


def test_no_coordinator_is_there() -> None:
    nobody = openai.OpenAI(base_url=f"http://127.0.0.1:{free_port()}/v1", api_key="x", max_retries=0)
    with pytest.raises(openai.APIConnectionError):
        nobody.models.list()
