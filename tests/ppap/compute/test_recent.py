"""A bounded cache keeps what was used last."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from ppap.compute.recent import Recent


def test_what_was_not_used_for_longest_goes() -> None:
    made: list[str] = []
    recent: Recent[str, str] = Recent(2)

    def get(key: str) -> str:
        return recent.get(key, lambda: made.append(key) or key.upper())  # type: ignore[func-returns-value]

    assert [get(key) for key in "abab"] == list("ABAB")
    assert made == ["a", "b"]
    get("a")
    get("c")
    assert "a" in recent
    assert "b" not in recent
    get("b")
    assert made == ["a", "b", "c", "b"]
    assert len(recent) == 2


def test_a_value_takes_the_place_of_another_and_none_is_a_value() -> None:
    recent: Recent[int, int | None] = Recent(1)
    recent.put(1, 5)
    recent.put(1, None)
    assert recent.get(1, lambda: 7) is None
    recent.clear()
    assert recent.get(1, lambda: 7) == 7


def test_what_cannot_be_made_is_not_kept() -> None:
    recent: Recent[int, int] = Recent(1)
    with pytest.raises(ZeroDivisionError):
        recent.get(1, lambda: 1 // 0)
    assert len(recent) == 0


def test_threads_make_a_thing_once() -> None:
    made: list[int] = []
    recent: Recent[int, int] = Recent(3)

    def make() -> int:
        made.append(0)
        return len(made)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: recent.get(0, make), range(64)))
    assert found == [1] * 64


@pytest.mark.parametrize("most", [0, -1])
def test_nothing_to_keep_is_refused(most: int) -> None:
    with pytest.raises(ValueError, match="most"):
        Recent(most)
