"""Stop strings in streamed text, also where they span tokens."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Passes text through, holds back what may be the beginning of a stop string.

    One automaton a stop string (Knuth, Morris and Pratt, 1977): constant time for each
    character, however long the strings are.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._patterns = [_Pattern(stop) for stop in stops]
        self._held = ""
        self.matched = False

    def push(self, text: str) -> str:
        """The text that is now certain to be no part of a stop string.

        Once a stop string is complete, `matched` is true, what comes before it is returned,
        and it is gone together with what follows.
        """
        assert not self.matched, "no text follows a stop string"
        buffer = self._held + text
        for at in range(len(self._held), len(buffer)):
            # The longest of several that end here began first.
            complete = [p.length for p in self._patterns if p.advance(buffer[at])]
            if complete:
                self.matched = True
                self._held = ""
                return buffer[: at + 1 - max(complete)]
        certain = len(buffer) - max((p.progress for p in self._patterns), default=0)
        self._held = buffer[certain:]
        return buffer[:certain]

    def flush(self) -> str:
        """What was held and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held


class _Pattern:
    """One string and how many of its first characters the text ends with."""

    def __init__(self, text: str) -> None:
        assert text, "an empty stop string would match everywhere"
        self._text = text
        self._fallback = _fallbacks(text)
        self.length = len(text)
        self.progress = 0

    def advance(self, character: str) -> bool:
        """Reads one character; true when the string is complete."""
        while self.progress and self._text[self.progress] != character:
            self.progress = self._fallback[self.progress - 1]
        if self._text[self.progress] == character:
            self.progress += 1
        return self.progress == self.length


def _fallbacks(text: str) -> list[int]:
    """For each prefix, the length of its longest proper suffix that is a prefix too."""
    table = [0] * len(text)
    matched = 0
    for at in range(1, len(text)):
        while matched and text[at] != text[matched]:
            matched = table[matched - 1]
        if text[at] == text[matched]:
            matched += 1
        table[at] = matched
    return table
