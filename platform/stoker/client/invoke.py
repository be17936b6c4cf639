"""`stoker invoke`: any JSON in, any JSON out, streamed where the function streams."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path

from stoker.client.conversation import expected_start
from stoker.client.http import Platform
from stoker.client.progress import cold_start
from stoker.client.render import waterfall
from stoker.client.terminal import Terminal
from stoker.errors import BadRequest


def payload_from(argument: str | None) -> object:
    """The JSON value that the command line names: itself, `@file`, or `-` for stdin.

    Raises `BadRequest` saying where the text stops being JSON.
    """
    try:
        match argument:
            case None:
                return {}
            case "-":
                text = sys.stdin.read()
            case _ if argument.startswith("@"):
                text = Path(argument[1:]).read_text()
            case _:
                text = argument
    except OSError as error:
        raise BadRequest(f"cannot read {argument}: {error.strerror}", param="payload") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRequest(
            f"the payload is not JSON: {error}; a text needs quotes of its own",
            param="payload",
        ) from error


def invoke(
    platform: Platform,
    terminal: Terminal,
    name: str,
    payload: object,
    *,
    with_timeline: bool,
) -> None:
    """Prints what the function answers: texts as they are, other values as JSON."""
    function = platform.function(name)
    with ExitStack() as waiting:
        if function.get("state") != "ready":
            waiting.enter_context(cold_start(terminal.err, expected_start(function)))
        with platform.invoke(name, payload) as (reply, values):
            for value in values:
                waiting.close()
                if isinstance(value, str) and not terminal.as_json:
                    terminal.write(value + "\n")
                else:
                    terminal.write(json.dumps(value, ensure_ascii=False) + "\n")
    if with_timeline:
        terminal.err.print(waterfall(platform.startup(reply.request_id)))
