"""What commands have in common: where the platform is, and how results are printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stoker.client.http import Platform
    from stoker.client.terminal import Terminal

DEFAULT_URL = "http://127.0.0.1:7717"

Url = Annotated[str, typer.Option("--url", envvar="STOKER_URL", help="Where the platform answers.")]
Output = Annotated[
    str, typer.Option("-o", "--output", metavar="text|json", help="How results are printed.")
]


def connect(url: str) -> Platform:
    from stoker.client.http import Platform

    return Platform(url)


def terminal(output: str = "text") -> Terminal:
    from stoker.client.terminal import Terminal

    if output not in ("text", "json"):
        raise typer.BadParameter(f"{output!r} is neither text nor json", param_hint="--output")
    return Terminal.standard(as_json=output == "json")
