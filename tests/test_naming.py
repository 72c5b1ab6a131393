"""Names that people can tell apart: whom credits are sent to must not be taken for another."""

import pytest

from coordinator.naming import clean_name, folded, member_name
from coordinator.store_errors import StoreError


@pytest.mark.parametrize(
    "name", ["alice", "Zoë", "Ørsted-Lab 3", "Иван", "李雷", "müller@lab", "o'neill", "γιώργος", "a.b"]
)
def test_what_people_are_called_is_a_name(name: str) -> None:
    assert member_name(f" {name} ") == clean_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "a\nb",
        "x" * 65,
        "admin\ufe0f",
        "ali\u034fce",
        "alice\u3164",
        "admin\u115f",
        "al\u2800ice",
        "a\u200bb",
    ],
)
def test_what_nobody_sees_is_no_part_of_any_name(name: str) -> None:
    with pytest.raises(StoreError, match="1 to 64 characters"):
        clean_name(name)


@pytest.mark.parametrize("name", ["commons", "The Commons", "pool", "YOU", "lines", "a/b", ".", ".."])
def test_what_means_something_else_here_is_no_members_name(name: str) -> None:
    with pytest.raises(StoreError, match="choose another name"):
        member_name(name)
    assert clean_name(name), "a key or a machine may be called so"


def test_letters_that_look_alike_do_not_mix() -> None:
    with pytest.raises(StoreError, match="look alike"):
        member_name("\u0430lice")  # a Cyrillic a
    assert member_name("李 alice") == "李 alice"


def test_two_spellings_are_one_name() -> None:
    assert folded(" Zoe\u0308 ") == folded("ZOË")
