"""A conversation with a chat function in a terminal: streams answers, shows cold starts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field

from stoker.client.chat import Turn, chat, request_body
from stoker.client.http import Json, Platform
from stoker.client.progress import cold_start
from stoker.client.render import waterfall
from stoker.client.terminal import Terminal
from stoker.client.timeline import timeline_from
from stoker.domain import Timeline
from stoker.errors import RequestNotFound


def expected_start(function: Json) -> Timeline | None:
    """The function's last start, by which the next one is judged; None before the first."""
    last = function.get("last_startup")
    return timeline_from(last) if last else None


@dataclass(slots=True)
class Conversation:
    """What has been said to `function` so far, and how to go on."""

    platform: Platform
    terminal: Terminal
    function: str
    sampling: Json = field(default_factory=dict)
    with_timeline: bool = False
    messages: list[Json] = field(default_factory=list)

    def ask(self, question: str) -> Turn:
        """Streams the answer to stdout; the exchange is remembered once it is whole."""
        asked = [*self.messages, {"role": "user", "content": question}]
        streams = not self.terminal.as_json
        function = self.platform.function(self.function)
        with ExitStack() as waiting:
            if function.get("state") != "ready":
                waiting.enter_context(cold_start(self.terminal.err, expected_start(function)))

            def show(text: str) -> None:
                waiting.close()
                if streams:
                    self.terminal.write(text)

            turn = chat(
                self.platform,
                request_body(self.function, asked, **self.sampling),
                on_text=show,
            )
        self.messages = [*asked, {"role": "assistant", "content": turn.text}]
        if streams:
            self.terminal.write("\n")
        self._conclude(turn)
        return turn

    def _conclude(self, turn: Turn) -> None:
        timeline = turn.timeline
        if timeline is None and (self.with_timeline or self.terminal.as_json):
            timeline = self._timeline(turn.request_id)
        if self.terminal.as_json:
            record = {**asdict(turn), "timeline": timeline and asdict(timeline)}
            self.terminal.show(record, lambda: turn.text)
        elif self.with_timeline and timeline is not None:
            self.terminal.err.print(waterfall(timeline))

    def _timeline(self, request_id: str) -> Timeline | None:
        try:
            return self.platform.startup(request_id)
        except RequestNotFound as error:
            self.terminal.note(f"no timeline: {error.message}", "yellow")
            return None

    def hold(self, read: Callable[[], str]) -> None:
        """Asks what `read` returns, again and again, until the end of input or an interrupt
        while nothing is being answered. An interrupt within an answer cancels that answer."""
        while True:
            try:
                question = read().strip()
            except (EOFError, KeyboardInterrupt):
                self.terminal.write("\n")
                return
            if not question:
                continue
            try:
                self.ask(question)
            except KeyboardInterrupt:
                self.terminal.note("\ncancelled", "yellow")


def read_line() -> str:
    """One line from a person, with the line editing that the terminal offers."""
    import readline  # noqa: F401 - gives input() history and editing

    return input("> ")


def whole_input() -> str:
    """All of stdin, as one question from a pipe."""
    return sys.stdin.read().strip()
