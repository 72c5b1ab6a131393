"""The addresses of a pool's coordinators, as a worker goes through them."""

from worker.addresses import ADDRESSES_MAX, Addresses
from worker.membership import Membership


def member(**more: object) -> Membership:
    known = {"worker_id": "wrk_1", "name": "rig", "member": "alice", "pool": "p", "url": "https://pool"}
    return Membership.model_validate({**known, "grpc": "a:1", **more})


def test_it_goes_round_and_says_when_all_were_tried() -> None:
    addresses = Addresses.of(member(coordinators=["b:1", "c:1", "a:1"]))
    tried = [(addresses.current, addresses.turn()) for _ in range(4)]
    assert tried == [("a:1", False), ("b:1", False), ("c:1", True), ("a:1", False)]
    alone = Addresses.of(member())
    assert (alone.turn(), alone.current) == (True, "a:1")


def test_what_is_told_comes_next_and_nothing_known_is_forgotten() -> None:
    """Where the pool was found just now stays first; what is told again is no news."""
    addresses = Addresses("a:1", ["b:1"])
    addresses.turn()
    assert addresses.learn(["b:1", "c:1"])
    assert addresses.known == ("b:1", "c:1", "a:1")
    assert not addresses.learn(["c:1", "b:1"])
    assert addresses.current == "b:1"


def test_what_could_be_no_address_is_left_out_and_there_are_few() -> None:
    addresses = Addresses("a:1")
    assert not addresses.learn(["", "nowhere", "x\n:1", "y" * 600 + ":1"])
    addresses.learn(f"h{n}:1" for n in range(100))
    assert len(addresses.known) == ADDRESSES_MAX
    assert addresses.current == "a:1"


def test_where_it_is_welcomed_is_where_it_renews_but_never_in_the_clear_if_it_joined_by_https() -> None:
    plain, secure = member(url="http://a"), member(url="https://a")
    assert plain.welcomed_at("http://b").at("/x") == ["http://a/x", "http://b/x"]
    assert secure.welcomed_at("https://b").welcomed_at("https://c").urls == ("https://c", "https://b")
    for url in ("", "http://b", "ftp://b", "https://a", "https://b\n", "https://" + "b" * 3_000):
        assert secure.welcomed_at(url) == secure, url
