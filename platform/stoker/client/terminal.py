"""Where results and remarks go: results to stdout, as text or JSON; remarks to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.text import Text


@dataclass(frozen=True, slots=True)
class Terminal:
    """The two streams of a command, and whether its result is for people or for programs."""

    out: Console
    err: Console
    as_json: bool

    @staticmethod
    def standard(*, as_json: bool = False) -> Terminal:
        return Terminal(
            out=Console(highlight=False, soft_wrap=not sys.stdout.isatty()),
            err=Console(stderr=True, highlight=False),
            as_json=as_json,
        )

    def show(self, data: object, draw: Callable[[], RenderableType]) -> None:
        """Prints a result: `data` as JSON when asked for, else what `draw` makes of it."""
        if self.as_json:
            self.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
        else:
            self.out.print(draw())

    def write(self, text: str) -> None:
        """Prints text as it is, at once: pieces of a stream must not wait for a newline."""
        self.out.file.write(text)
        self.out.file.flush()

    def note(self, remark: str, style: str = "") -> None:
        """Says something that is no result."""
        self.err.print(Text(remark, style), soft_wrap=True)
