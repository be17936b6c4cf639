"""`stoker cache ...`: what each node has of checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stoker.client.options import DEFAULT_URL, Output, Url, connect, terminal

if TYPE_CHECKING:
    from stoker.client.http import Platform

app = typer.Typer(
    help="See what nodes have of checkpoints; bring it, pin it, verify it or give it up.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Reference = Annotated[str, typer.Argument(metavar="NAME", help="Or NAME@DIGEST, or a digest.")]
Node = Annotated[str | None, typer.Option("--node", help="Of one node.  [default: all]")]


@app.command("list")
def list_copies(node: Node = None, url: Url = DEFAULT_URL, output: Output = "text") -> None:
    """List what is on the nodes: bytes in each tier, and who needs it."""
    from stoker.client.tables import COPY_COLUMNS, shortened, table

    with connect(url) as platform:
        rows = [
            {"node": name, **copy}
            for name in _nodes(platform, node)
            for copy in platform.cache(name)["copies"]
        ]
    named = [{**row, "checkpoint": row["name"] or row["digest"]} for row in shortened(rows)]
    terminal(output).show(rows, lambda: table(named, COPY_COLUMNS))


@app.command()
def prefetch(name: Reference, node: Node = None, url: Url = DEFAULT_URL) -> None:
    """Bring a checkpoint to the nodes before a request needs it."""
    with connect(url) as platform:
        for each in _nodes(platform, node):
            platform.prefetch(each, name)


@app.command()
def evict(name: Reference, node: Node = None, url: Url = DEFAULT_URL) -> None:
    """Give up the nodes' copies of a checkpoint; what an instance needs stays."""
    with connect(url) as platform:
        for each in _nodes(platform, node):
            platform.evict(each, name)


@app.command()
def pin(
    name: Reference,
    node: Node = None,
    tier: Annotated[
        str, typer.Option(metavar="ssd|dram", help="dram: also locked in memory.")
    ] = "ssd",
    url: Url = DEFAULT_URL,
) -> None:
    """Bring a checkpoint to the nodes that there are now, and never give it up there."""
    if tier not in ("ssd", "dram"):
        raise typer.BadParameter(f"{tier!r} is neither ssd nor dram", param_hint="--tier")
    with connect(url) as platform:
        for each in _nodes(platform, node):
            platform.pin(each, name, tier)


@app.command()
def unpin(name: Reference, node: Node = None, url: Url = DEFAULT_URL) -> None:
    """Let a pinned checkpoint be given up again."""
    with connect(url) as platform:
        for each in _nodes(platform, node):
            platform.unpin(each, name)


@app.command()
def verify(name: Reference, node: Node = None, url: Url = DEFAULT_URL) -> None:
    """Read the nodes' copies of a checkpoint again and compare them with its digests.

    One that is not what it was is brought again when it is needed next.
    """
    from stoker.client.progress import byte_progress
    from stoker.client.push import followed

    term = terminal()
    with connect(url) as platform:
        for each in _nodes(platform, node):
            with byte_progress(term.err) as report:
                followed(platform.verify_copy(each, name), report)
            term.note(f"{each}: verified")


def _nodes(platform: Platform, node: str | None) -> list[str]:
    return [node] if node else [each["node_id"] for each in platform.nodes()]
