"""What a site decides without Ray: where replicas go, which clusters it refuses, what it says of ports."""

import os
import sys
from pathlib import Path

import pytest

from worker.errors import WorkerConflict
from worker.ray.cluster import Cluster, check_head, check_token
from worker.ray.placement import Node, Place, places
from worker.ray.ports import Door, Port, findings

GIB = 1 << 30
RACK = [
    Node("n1", "10.0.0.1", 1, cpus=16, memory_bytes=64 * GIB, cards=(24 * GIB, 24 * GIB)),
    Node("n2", "10.0.0.2", 1, cpus=8, memory_bytes=32 * GIB, cards=(8 * GIB,)),
    Node("n3", "10.0.0.3", 1, cpus=4, memory_bytes=8 * GIB),
]


def where(
    memory: int, *, engine: str = "torch", threads: int = 0, models: int = 1, most: int = 0
) -> list[Place]:
    found = places(
        RACK, engine=engine, memory_bytes=memory, threads=threads, models=models, replicas_max=most
    )
    return list(found)


def test_a_model_alone_gets_every_card_whole() -> None:
    assert where(6 * GIB) == [Place("n1", 0, 0, 1), Place("n2", 0, 0, 1), Place("n1", 1, 0, 1)]


def test_models_that_share_a_site_get_shares_of_cards_by_need_and_no_less_than_an_even_one() -> None:
    assert [place.cards for place in where(3 * GIB, models=2)] == [0.5, 0.5, 0.5]
    assert [place.cards for place in where(6 * GIB, models=3)] == [0.34, 0.75, 0.34]


def test_a_model_larger_than_a_card_gets_whole_ones_and_goes_where_there_are_enough() -> None:
    assert where(40 * GIB) == [Place("n1", 0, 0, 2)]
    assert where(60 * GIB) == []


def test_what_trains_is_one_and_keeps_out_of_the_way_of_what_serves() -> None:
    """Also on cards; with as many replicas as may be, and with one."""
    found = places(RACK, engine="trainer", memory_bytes=6 * GIB, threads=0, models=2, trains=True)
    assert list(found) == [Place("n1", 1, 0, 0.5)]
    found = places(RACK, engine="emulator", memory_bytes=0, threads=2, models=2, replicas_max=2, trains=True)
    assert list(found) == [Place("n3", 0, 2, 0)]


def test_an_engine_for_processors_gets_one_replica_on_each_node_that_has_the_memory() -> None:
    assert where(6 * GIB, engine="llamacpp") == [
        Place("n1", 0, 16, 0),
        Place("n2", 0, 8, 0),
        Place("n3", 0, 4, 0),
    ]
    assert [place.node for place in where(16 * GIB, engine="llamacpp")] == ["n1", "n2"]
    assert [place.cpus for place in where(GIB, engine="llamacpp", threads=6)] == [6, 6, 4]
    assert [place.cpus for place in where(GIB, engine="llamacpp", models=3)] == [5, 2, 1]


def test_replicas_are_spread_before_they_are_doubled_and_can_be_limited() -> None:
    assert [place.node for place in where(GIB, most=2)] == ["n1", "n2"]


@pytest.mark.parametrize("address", ["auto", "ray://10.0.0.1:10001", "local", "10.0.0.1", "", "x:1 --y"])
def test_only_a_cluster_named_by_host_and_port_is_joined(address: str, tmp_path: Path) -> None:
    with pytest.raises(WorkerConflict, match="HOST:PORT"):
        Cluster.join(address, tmp_path / "token")


@pytest.mark.skipif(sys.platform == "win32", reason="files there have no mode for others")
def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    token = tmp_path / "token"
    with pytest.raises(WorkerConflict, match="cannot be read"):
        check_token(token)
    token.write_text(" \n")
    with pytest.raises(WorkerConflict, match="no token"):
        check_token(token)
    token.write_text("secret")
    token.chmod(0o644)
    with pytest.raises(WorkerConflict, match="chmod 600"):
        check_token(token)
    token.chmod(0o600)
    check_token(token)


def test_an_address_where_nobody_answers_is_said_to_be_that() -> None:
    with pytest.raises(WorkerConflict, match=r"no Ray cluster answers at 127\.0\.0\.1:9"):
        check_head("127.0.0.1:9")


def test_without_ray_the_flags_say_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And leave the environment as it was."""
    monkeypatch.setitem(sys.modules, "ray", None)
    before = dict(os.environ)
    with pytest.raises(WorkerConflict, match=r"--ray needs Ray.*pip install 'potluck\[ray\]'"):
        Cluster.private(cpus=1)
    with pytest.raises(WorkerConflict, match=r"--ray-address needs Ray"):
        Cluster.join("127.0.0.1:9", tmp_path / "token")
    assert dict(os.environ) == before


def test_open_ports_are_named_with_what_to_do() -> None:
    here = Port(1000, "gcs_server", 1, loopback=True, door=Door.OPEN)
    guarded = Port(1001, "raylet", 2, loopback=False, door=Door.GUARDED)
    wide_open = Port(1002, "raylet", 3, loopback=False, door=Door.OPEN)
    assert findings([]) == findings([here]) == []
    [closed] = findings([here, guarded])
    assert "ports 1001 (1 of 1" in closed
    assert "firewall" in closed
    [danger, both] = findings([guarded, wide_open])
    assert danger.startswith("Port 1002 of Ray's raylet (process 3) lets in everybody")
    assert "RAY_AUTH_MODE=token" in danger
    assert "1001, 1002 (1 of 2" in both
