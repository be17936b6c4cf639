"""Stop strings: streaming gives what a look at the whole text would give."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker_runtime.generation.stops import StopMatcher

TEXT = st.text(alphabet="ab\n", max_size=30)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), max_size=4)


def stream(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    shown = ""
    for piece in pieces:
        shown += matcher.push(piece)
        if matcher.matched:
            return shown, True
    return shown + matcher.flush(), False


def whole(text: str, stops: list[str]) -> tuple[str, bool]:
    """The first stop string to be complete wins; of several, the longest."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@given(st.lists(TEXT, max_size=8), STOPS)
def test_pieces_make_no_difference(pieces: list[str], stops: list[str]) -> None:
    assert stream(pieces, stops) == whole("".join(pieces), stops)


@given(TEXT, STOPS)
def test_one_character_at_a_time(text: str, stops: list[str]) -> None:
    assert stream(list(text), stops) == whole(text, stops)


@given(TEXT, STOPS)
def test_only_a_possible_beginning_is_held(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown = matcher.push(text)
    if not matcher.matched:
        held = text[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)
        assert not any(stop.startswith(text[-n:]) for stop in stops for n in _longer(held, text))


def _longer(held: str, text: str) -> range:
    return range(len(held) + 1, len(text) + 1)


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["Hello wor", "ld. Bye"], ["world"], ("Hello ", True)),
        (["Hello wor", "k"], ["world"], ("Hello work", False)),
        (["aab"], ["aab", "ab", "b"], ("", True)),
        (["ababac"], ["abac"], ("ab", True)),
        (["你好", "世界"], ["好世"], ("你", True)),
        (["no stop"], [], ("no stop", False)),
    ],
)
def test_examples(pieces: list[str], stops: list[str], expected: tuple[str, bool]) -> None:
    assert stream(pieces, stops) == expected


def test_a_very_long_stop_string_costs_no_more_than_its_length() -> None:
    matcher = StopMatcher(["a" * 100_000 + "b"])
    assert matcher.push("a" * 250_000) == "a" * 150_000
    assert matcher.push("b") == ""
    assert matcher.matched
