"""The `stoker` command: reads the command line, calls the client, shows what came back.

Results go to stdout, everything else to stderr; imports wait until a command needs them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from stoker.client import cache_commands, checkpoint_commands
from stoker.client.options import DEFAULT_URL, Output, Url, connect, terminal
from stoker.errors import StokerError


class _Commands(TyperGroup):
    """Turns an operating error into its message, the next step, and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except StokerError as error:
            from stoker.client.failure import elaboration, exit_code, next_step

            typer.secho(f"error: {error.message}", err=True, fg=typer.colors.RED)
            for line in elaboration(error):
                typer.echo(f"       {line}", err=True)
            if step := next_step(error):
                typer.echo(f" next: {step}", err=True)
            raise typer.Exit(exit_code(error)) from None
        except KeyboardInterrupt:
            from stoker.client.failure import ExitCode

            raise typer.Exit(ExitCode.INTERRUPTED) from None


app = typer.Typer(
    cls=_Commands,
    help="Deploy models as functions: nothing runs until the first request, which starts them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help text appears in half the time
    add_completion=True,
)
app.add_typer(checkpoint_commands.app, name="checkpoints")
app.add_typer(cache_commands.app, name="cache")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The function.")]


@app.command()
def up(
    home: Annotated[
        Path | None, typer.Option(help="Where everything is kept.  [default: ~/.stoker]")
    ] = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="[default: 127.0.0.1:7717]")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="s3://BUCKET",
            help="Where checkpoints are kept; endpoint and credentials as for the aws command."
            "  [default: a folder of --home]",
        ),
    ] = None,
    deploy_uploads: Annotated[
        bool | None,
        typer.Option(
            "--deploy-uploads",
            help="Deploy what a function.yaml in an uploaded model's folder says.",
            show_default=False,
        ),
    ] = None,
    cache_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Of this node's copies of them, like 200Gi."),
    ] = None,
    dram_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Of the checkpoints that stay locked in memory, like 32Gi.  [default: none do]",
        ),
    ] = None,
    warm_pool: Annotated[
        int | None, typer.Option(help="Blank workers kept ready for the next start.")
    ] = None,
    ready_fd: Annotated[
        int | None, typer.Option(help="Write one JSON line to this descriptor when serving.")
    ] = None,
) -> None:
    """Run the platform on this machine until it is interrupted."""
    from stoker.config import load_settings
    from stoker.serve import run

    flags = {
        "home": home,
        "listen": listen,
        "store": store,
        "deploy_uploads": deploy_uploads,
        "cache_size": cache_size,
        "dram_size": dram_size,
        "warm_pool": warm_pool,
    }
    run(load_settings(flags), ready_fd=ready_fd)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="NAME", help="A new folder, named so.")],
    template: Annotated[str, typer.Option(metavar="handler|chat")] = "handler",
) -> None:
    """Write the first files of a function."""
    from stoker.client.scaffold import Template, scaffold

    if template not in list(Template):
        raise typer.BadParameter(f"{template!r} is neither handler nor chat")
    for path in scaffold(folder, Template(template)):
        typer.echo(path)
    typer.echo(f" next: stoker deploy {folder}", err=True)


@app.command()
def deploy(
    path: Annotated[Path, typer.Argument(help="function.yaml, or the folder that holds it.")],
    url: Url = DEFAULT_URL,
    output: Output = "text",
) -> None:
    """Deploy a function, with the files its manifest names."""
    from stoker.client.deploy import deploy as deploy_function
    from stoker.client.progress import byte_progress

    term = terminal(output)
    with connect(url) as platform, byte_progress(term.err) as report:
        deployment = deploy_function(platform, path, report=report)
    term.show(deployment.body, deployment.sentence)
    term.note(f" next: {deployment.invocation}")


@app.command()
def push(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="DIR|FILE",
            exists=True,
            help="A folder of safetensors, one such file or index, or GGUF.",
        ),
    ],
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="What manifests will call it.  [default: the folder's or file's own]",
            show_default=False,
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    output: Output = "text",
) -> None:
    """Bring a checkpoint to the platform's store."""
    from stoker.client.progress import byte_progress
    from stoker.client.push_model import default_name, push_model
    from stoker.client.tables import details

    term = terminal(output)
    if name is None:
        name = default_name(path)
        term.note(f"its name is {name}")
    with connect(url) as platform, byte_progress(term.err) as report:
        artifact = push_model(platform, path, name, report=report, note=term.note)
    term.show(artifact, lambda: details(artifact))


@app.command()
def chat(
    name: Name,
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="Ask this once, instead of conversing.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="Instructions for the model.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, max=2.0)] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    timeline: Annotated[
        bool, typer.Option("--timeline", help="Show where the time went until the first token.")
    ] = False,
    url: Url = DEFAULT_URL,
    output: Output = "text",
) -> None:
    """Talk to a chat function; a pipe's text is one question."""
    from stoker.client.conversation import Conversation, read_line, whole_input

    sampling = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    opening = [{"role": "system", "content": system}] if system else []
    with connect(url) as platform:
        conversation = Conversation(platform, terminal(output), name, sampling, timeline, opening)
        if prompt is None and sys.stdin.isatty():
            conversation.hold(read_line)
        else:
            conversation.ask(whole_input() if prompt is None else prompt)


@app.command()
def invoke(
    name: Name,
    payload: Annotated[
        str | None, typer.Argument(metavar="[JSON | @FILE | -]", show_default=False)
    ] = None,
    timeline: Annotated[
        bool, typer.Option("--timeline", help="Show where the time went until the first value.")
    ] = False,
    url: Url = DEFAULT_URL,
    output: Output = "text",
) -> None:
    """Call a function with any JSON."""
    from stoker.client.invoke import invoke as invoke_function
    from stoker.client.invoke import payload_from

    with connect(url) as platform:
        invoke_function(
            platform, terminal(output), name, payload_from(payload), with_timeline=timeline
        )


@app.command()
def logs(
    name: Name,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as lines come.")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Print what a function's instances wrote."""
    term = terminal()
    with connect(url) as platform:
        for line in platform.logs(name, follow=follow):
            term.write(line + "\n")


@app.command("list")
def list_functions(url: Url = DEFAULT_URL, output: Output = "text") -> None:
    """List the functions that are deployed, cold ones too."""
    from stoker.client.tables import FUNCTION_COLUMNS, table

    with connect(url) as platform:
        rows = platform.functions()
    terminal(output).show(rows, lambda: table(rows, FUNCTION_COLUMNS))


@app.command()
def describe(name: Name, url: Url = DEFAULT_URL, output: Output = "text") -> None:
    """Show all that is known of a function."""
    from stoker.client.describe import function_page

    with connect(url) as platform:
        body = platform.function(name)
    terminal(output).show(body, lambda: function_page(body))


@app.command()
def ps(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]")] = None,
    url: Url = DEFAULT_URL,
    output: Output = "text",
) -> None:
    """List the instances that run, of one function or of all."""
    from stoker.client.tables import INSTANCE_COLUMNS, table

    with connect(url) as platform:
        names = [name] if name else [function["name"] for function in platform.functions()]
        rows = [row for each in names for row in platform.instances(each)]
    terminal(output).show(rows, lambda: table(rows, INSTANCE_COLUMNS))


@app.command()
def scale(
    name: Name,
    replicas: Annotated[int, typer.Argument(metavar="N", min=0)],
    url: Url = DEFAULT_URL,
    output: Output = "text",
) -> None:
    """Start or stop instances until N run; 0 frees everything."""
    from stoker.client.tables import details

    with connect(url) as platform:
        status = platform.scale(name, replicas)
    terminal(output).show(status, lambda: details(status))


@app.command()
def prewarm(name: Name, url: Url = DEFAULT_URL, output: Output = "text") -> None:
    """Start a first instance before the first request needs it."""
    from stoker.client.tables import details

    with connect(url) as platform:
        status = platform.prewarm(name)
    terminal(output).show(status, lambda: details(status))


@app.command()
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Remove a function and stop its instances."""
    with connect(url) as platform:
        platform.function(name)
        if not yes:
            typer.confirm(f"Remove {name!r} and stop its instances?", abort=True, err=True)
        platform.delete(name)
    typer.echo(f"deleted {name}", err=True)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
