"""What Prometheus reads: true numbers, for admins, with labels whose number has a bound and that name nobody."""

from typing import Any

import pytest
from fixtures_api import MODEL, Stand, error_of, open_stand
from prometheus_client.parser import text_string_to_metric_families

Sample = tuple[str, tuple[tuple[str, str], ...]]


async def scraped(stand: Stand) -> dict[Sample, float]:
    answer = (await stand.ask("GET", "/metrics", by="admin")).raise_for_status()
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def test_jobs_tokens_and_requests_are_counted(tmp_path: Any) -> None:
    async with open_stand(tmp_path) as stand:
        before = await scraped(stand)
        for _ in range(3):
            (await stand.chat()).raise_for_status()
        assert (await stand.http.get(f"{stand.url}/no/such/path?secret=1")).status_code == 404
        after = await scraped(stand)

        def counted(name: str, **labels: str) -> float:
            key = (name, tuple(sorted(labels.items())))
            return after.get(key, 0.0) - before.get(key, 0.0)

        assert counted("potluck_jobs_total", kind="chat", state="succeeded") == 3
        usage = (await stand.chat()).json()["usage"]
        assert counted("potluck_tokens_total", model=MODEL, way="in") == 3 * usage["prompt_tokens"]
        assert counted("potluck_tokens_total", model=MODEL, way="out") == 3 * usage["completion_tokens"]
        route = "/v1/chat/completions"
        assert counted("potluck_http_requests_total", method="POST", route=route, status="200") == 3
        assert counted("potluck_http_requests_total", method="GET", route="unknown", status="404") == 1
        assert counted("potluck_tick_seconds_count", part="commit") >= 3
        assert after["potluck_ledger_sum_microcredits", ()] == 0
        assert after["potluck_reserved_credits", ()] == 0
        assert after["potluck_workers", (("state", "sharing"),)] == 1
        assert after["potluck_model_workers", (("model", MODEL),)] == 1
        entries = stand.ticker.chain.number
        assert after["potluck_ledger_entries", ()] <= entries
        told = " ".join(value for _, labels in after for _, value in labels)
        named = (*stand.members, *(member.id for member in stand.members.values()))
        assert not [name for name in named if name in told], "labels name nobody"


@pytest.mark.parametrize("who", ["alice", "nobody"])
async def test_it_is_for_admins(tmp_path: Any, who: str) -> None:
    async with open_stand(tmp_path) as stand:
        refused = await stand.ask("GET", "/metrics", by=who)
        wanted = (403, "admin_needed") if who == "alice" else (401, "invalid_api_key")
        assert (refused.status_code, error_of(refused)["code"]) == wanted


async def test_a_key_that_may_only_read_is_enough(tmp_path: Any) -> None:
    """Prometheus needs to be able to do nothing else."""
    async with open_stand(tmp_path) as stand:
        body = {"name": "prometheus", "scopes": ["read"]}
        key = (await stand.ask("POST", "/pool/v1/keys", by="admin", json=body)).json()["key"]
        assert (await stand.ask("GET", "/metrics", by=key)).status_code == 200
        assert (await stand.ask("POST", "/pool/v1/keys", by=key, json=body)).status_code == 403
