"""`stoker checkpoints ...`: what is in the store, and what becomes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stoker.client.options import DEFAULT_URL, Output, Url, connect, terminal

if TYPE_CHECKING:
    from rich.console import RenderableType

    from stoker.client.http import Json


app = typer.Typer(
    help="See, verify and delete what was pushed.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Reference = Annotated[str, typer.Argument(metavar="NAME", help="Or NAME@DIGEST, or a digest.")]


@app.command("list")
def list_checkpoints(url: Url = DEFAULT_URL, output: Output = "text") -> None:
    """List the checkpoints, oldest first."""
    with connect(url) as platform:
        rows = platform.checkpoints()
    terminal(output).show(rows, lambda: _table(rows))


@app.command()
def describe(name: Reference, url: Url = DEFAULT_URL, output: Output = "text") -> None:
    """Show a checkpoint's files, its names, and the revisions that need it."""
    from rich.console import Group

    from stoker.client.tables import FILE_COLUMNS, details, table

    with connect(url) as platform:
        body = platform.checkpoint(name)
    facts = {key: value for key, value in body.items() if key != "files"}
    terminal(output).show(
        body, lambda: Group(details(facts), "", table(body["files"], FILE_COLUMNS))
    )


@app.command()
def verify(name: Reference, url: Url = DEFAULT_URL, output: Output = "text") -> None:
    """Read all of a checkpoint again, where it is kept, and compare it with its digests."""
    from stoker.client.progress import byte_progress
    from stoker.client.push import followed
    from stoker.client.tables import details

    term = terminal(output)
    with connect(url) as platform, byte_progress(term.err) as report:
        artifact = followed(platform.verify_checkpoint(name), report)
    term.show(artifact, lambda: details(artifact))


@app.command()
def delete(
    name: Reference,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    url: Url = DEFAULT_URL,
    output: Output = "text",
) -> None:
    """Delete a checkpoint that no revision needs."""
    from stoker.client.tables import details

    with connect(url) as platform:
        platform.checkpoint(name)
        if not yes:
            typer.confirm(f"Delete checkpoint {name} for good?", abort=True, err=True)
        artifact = platform.delete_checkpoint(name)
    terminal(output).show(artifact, lambda: details(artifact))


@app.command()
def gc(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be deleted.")
    ] = False,
    url: Url = DEFAULT_URL,
    output: Output = "text",
) -> None:
    """Delete what no revision needs and no name stands for any more."""
    with connect(url) as platform:
        rows = platform.collect_checkpoints(dry_run=dry_run)
    terminal(output).show(rows, lambda: _table(rows))


def _table(rows: list[Json]) -> RenderableType:
    from stoker.client.tables import CHECKPOINT_COLUMNS, shortened, table

    return table(shortened(rows), CHECKPOINT_COLUMNS)
