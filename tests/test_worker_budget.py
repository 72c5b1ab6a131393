"""Who leaves memory for whom, what waits, and what can never be."""

from hypothesis import given
from hypothesis import strategies as st

from worker.budget import Resident, Room, make_room, shares, together
from worker.pace import Pace

GB = 1_000_000_000


def resident(
    name: str, size_gb: float, used_at: float = 0.0, *, busy: bool = False, place: str = "memory"
) -> Resident:
    return Resident(name=name, place=place, size_bytes=int(size_gb * GB), used_at=used_at, busy=busy)


def room(size_gb: float, *residents: Resident, cap_gb: float = 10) -> Room:
    return make_room("new", "memory", int(size_gb * GB), residents, {"memory": int(cap_gb * GB)})


def test_what_fits_takes_nobodys_place() -> None:
    assert room(4, resident("a", 6)) == Room()


def test_the_least_recently_used_leaves_first_and_no_more_than_needed() -> None:
    there = (resident("new-est", 3, 30.0), resident("old", 3, 10.0), resident("mid", 3, 20.0))
    assert room(4, *there).evict == ("old",)
    assert room(5, *there).evict == ("old", "mid")
    assert room(10, *there).evict == ("old", "mid", "new-est")


def test_who_works_is_not_sent_away() -> None:
    assert room(4, resident("a", 5, 1.0, busy=True), resident("b", 5, 2.0)).evict == ("b",)
    waits = room(6, resident("a", 5, 1.0, busy=True), resident("b", 5, 2.0))
    assert (waits.evict, waits.wait) == ((), "new needs 6.0 GB, 5.0 GB are free while a works")


def test_what_is_larger_than_the_cap_never_fits() -> None:
    assert room(11).never == "new needs 11.0 GB, and this worker may use 10.0 GB"


def test_memory_of_the_machine_and_of_its_card_do_not_compete() -> None:
    assert room(10, resident("on the card", 10, place="vram")) == Room()


def test_as_many_share_the_threads_as_fit_together() -> None:
    assert together([3, 3, 3], 7) == 2
    assert together([9], 1) == 1
    assert together([], 1) == 1


def test_what_is_left_beside_the_models_is_shared_out_evenly() -> None:
    assert shares({"a": 2, "b": 4}, 10) == {"a": 4, "b": 6}
    assert shares({"a": 4}, 10) == {"a": 10}
    assert shares({"a": 6, "b": 6}, 10) == {"a": 10, "b": 10}, "they take turns, and each may have all of it"
    assert shares({"bridge": 0, "a": 4}, 10) == {"a": 10}, "what lies elsewhere takes nothing"
    assert shares({}, 10) == {}


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 12)), st.integers(12, 60))
def test_as_many_models_as_fit_together_by_size_fit_together_by_share(
    sizes: dict[str, int], cap: int
) -> None:
    found = shares(sizes, cap)
    assert all(sizes[name] <= share <= cap for name, share in found.items())
    smallest = sorted(found, key=lambda name: sizes[name])[: together(sizes.values(), cap)]
    assert sum(found[name] for name in smallest) <= cap


RESIDENTS = st.lists(
    st.builds(
        resident,
        st.sampled_from("abcdefgh"),
        st.integers(0, 12),
        st.integers(0, 5).map(float),
        busy=st.booleans(),
        place=st.sampled_from(["memory", "vram"]),
    ),
    max_size=6,
    unique_by=lambda found: found.name,
)


@given(RESIDENTS, st.integers(0, 20))
def test_whatever_is_there_the_cap_holds_and_nobody_leaves_in_vain(
    there: list[Resident], size_gb: int
) -> None:
    answer = room(size_gb, *there, cap_gb=10)
    left = [each for each in there if each.name not in answer.evict and each.place == "memory"]
    used = sum(each.size_bytes for each in left)
    if answer.never or answer.wait:
        assert not answer.evict
        stays = sum(each.size_bytes for each in left if each.busy)
        assert size_gb * GB + stays > 10 * GB, "idle ones alone are no reason to wait"
    elif answer.evict:
        assert used + size_gb * GB <= 10 * GB
        gone = [each for each in there if each.name in answer.evict]
        assert not any(each.busy for each in gone)
        assert min(each.size_bytes for each in gone) + used + size_gb * GB > 10 * GB or len(gone) > 1
    else:
        assert used + size_gb * GB <= 10 * GB


def test_the_time_left_follows_from_what_came_and_is_never_guessed() -> None:
    pace = Pace(at=100.0, bytes_done=1000)
    assert pace.left_ms(1000, 5000, 130.0) == 0, "nothing came: nobody knows"
    assert pace.left_ms(2000, 5000, 100.5) == 0, "too early to tell"
    assert pace.left_ms(2000, 5000, 110.0) == 30_000
    assert Pace(at=100.0, bytes_done=0, took_s=8.0).left_ms(0, 0, 102.0) == 6_000
    assert Pace(at=100.0, bytes_done=0, took_s=8.0).left_ms(0, 0, 109.0) == 0
