"""The demo: a model from nothing to a streamed answer, three times, with the time explained.

`python scripts/demo.py` starts a platform in a fresh home below `.cache/demo`, deploys
`functions/chat`, asks it cold, cold again and warm, compares the three, and stops the platform.
Exits 0 only if all of it worked; on a failure the platform's last log lines are shown.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stoker.client.chat import Turn, chat, request_body
from stoker.client.deploy import deploy
from stoker.client.failure import elaboration
from stoker.client.http import Platform
from stoker.client.local import LocalPlatform, local_platform, tail
from stoker.client.progress import byte_progress
from stoker.client.render import milliseconds, origin, waterfall
from stoker.domain import PhaseName, Timeline
from stoker.errors import StokerError

ROOT = Path(__file__).resolve().parents[1]
FUNCTION = ROOT / "functions" / "chat"
QUESTION = "What is the capital of France?"
MAX_TOKENS = 48


@dataclass(frozen=True, slots=True)
class Asked:
    """One question's answer and where its time went."""

    label: str
    turn: Turn
    timeline: Timeline


def main() -> int:
    console = Console(highlight=False)
    scratch = ROOT / ".cache" / "demo"
    scratch.mkdir(parents=True, exist_ok=True)
    home = Path(tempfile.mkdtemp(dir=scratch, prefix="home-"))
    try:
        play(console, home)
    except (StokerError, AssertionError) as error:
        console.print(Text(f"\nThe demo failed: {error}", "bold red"))
        for line in elaboration(error) if isinstance(error, StokerError) else ():
            console.print(Text(f"  {line}"), soft_wrap=True)
        log = home / "platform.log"
        if log.exists():
            console.print(Text(f"\nThe end of {log}:\n{tail(log)}", "bright_black"), soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print(Text("\nInterrupted; the platform is down.", "yellow"))
        return 130
    shutil.rmtree(home)
    return 0


def play(console: Console, home: Path) -> None:
    """The whole demo. Raises what goes wrong."""
    step(console, "stoker up", "the platform: gateway, scheduler, one node with a warm worker")
    with local_platform(home, warm_pool=1) as local, Platform(local.url) as platform:
        perform(console, local, platform)
        step(console, "stop", "SIGTERM: requests drain, every process ends")
    console.print(Text("Down. Nothing is left running.\n", "green"))


def perform(console: Console, local: LocalPlatform, platform: Platform) -> None:
    console.print(Text(f"  {local.url}", "bright_black"))
    step(console, f"stoker deploy {FUNCTION.relative_to(ROOT)}", "a model becomes a function")
    with byte_progress(console) as report:
        deployment = deploy(platform, FUNCTION, report=report)
    name = deployment.function
    console.print(f"  {deployment.sentence()}")

    platform.ready(warm=True)
    step(console, f"stoker chat {name}", "nothing runs for it yet: the request starts it")
    first = ask(console, platform, name, "first cold start")
    assert first.turn.cold, "the first request found a running instance"

    step(console, f"stoker scale {name} 0", "to zero: no process, no memory; the pages stay warm")
    platform.scale(name, 0)
    platform.ready(warm=True)
    step(console, f"stoker chat {name}", "cold again")
    second = ask(console, platform, name, "second cold start")
    assert second.turn.cold, "the function was not scaled to zero"

    step(console, f"stoker chat {name}", "and once more, now that it runs")
    warm = ask(console, platform, name, "warm")
    assert not warm.turn.cold, "the warm request started an instance"

    console.print()
    console.print(comparison((first, second, warm)))


def step(console: Console, command: str, meaning: str) -> None:
    console.print()
    console.print(Text.assemble(("$ ", "bright_black"), (command, "bold cyan"), f"  # {meaning}"))


def ask(console: Console, platform: Platform, name: str, label: str) -> Asked:
    """Asks the demo's question, printing the answer as it streams, then its waterfall."""

    def write(text: str) -> None:
        console.file.write(text)
        console.file.flush()

    console.print(Text(f"  {QUESTION}", "bright_black"))
    write("  ")
    messages = [{"role": "user", "content": QUESTION}]
    body = request_body(name, messages, max_tokens=MAX_TOKENS, temperature=0)
    turn = chat(platform, body, on_text=write)
    write("\n\n")
    assert turn.text.strip(), "the model answered nothing"
    timeline = turn.timeline or platform.startup(turn.request_id)
    console.print(waterfall(timeline))
    return Asked(label, turn, timeline)


def comparison(all_asked: tuple[Asked, ...]) -> Table:
    """Three lines: how long each took for its first token and in all, and from which tier."""
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("first token", justify="right")
    table.add_column("whole answer", justify="right")
    table.add_column("weights from")
    for asked in all_asked:
        assert asked.turn.first_token_ms is not None
        table.add_row(
            Text(asked.label, "bold"),
            f"{milliseconds(asked.turn.first_token_ms)} ms",
            f"{milliseconds(asked.turn.total_ms)} ms",
            weights_from(asked.timeline) if asked.turn.cold else "already on the device",
        )
    return table


def weights_from(timeline: Timeline) -> str:
    loads = [phase for phase in timeline.phases if phase.name is PhaseName.LOAD]
    return ", ".join(origin(phase) for phase in loads)


if __name__ == "__main__":
    sys.exit(main())
