"""JSON from the API as people read it: tables, nested details, sizes and durations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

SHOWN_DIGEST_CHARS = len("blake3:") + 12
STATE_STYLES = {
    "ready": "green",
    "starting": "yellow",
    "draining": "yellow",
    "cold": "blue",
    "failed": "red",
}


def size(size_bytes: float) -> str:
    """Decimal units, as disks and networks are sold: 269 MB, 2.3 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if size_bytes >= 10 else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table of JSON rows: its heading, the row's key, how it is shown."""

    heading: str
    key: str
    right: bool = False


FUNCTION_COLUMNS = (
    Column("FUNCTION", "name"),
    Column("STATE", "state"),
    Column("INSTANCES", "instances", right=True),
    Column("REVISION", "revision"),
    Column("ENGINE", "engine"),
    Column("CHECKPOINT", "checkpoint_bytes", right=True),
)
INSTANCE_COLUMNS = (
    Column("INSTANCE", "id"),
    Column("FUNCTION", "function"),
    Column("REVISION", "revision"),
    Column("STATE", "state"),
    Column("ACTIVE", "active", right=True),
    Column("SLOTS", "slots", right=True),
    Column("PID", "pid", right=True),
    Column("STOPS IN", "idle_deadline_s", right=True),
)

CHECKPOINT_COLUMNS = (
    Column("CHECKPOINT", "name"),
    Column("SIZE", "size_bytes", right=True),
    Column("PUSHED", "created_at"),
    Column("DIGEST", "digest"),
)
COPY_COLUMNS = (
    Column("NODE", "node"),
    Column("CHECKPOINT", "checkpoint"),
    Column("STATE", "state"),
    Column("SSD", "ssd_bytes", right=True),
    Column("DRAM", "dram_bytes", right=True),
    Column("LOCKED", "locked_bytes", right=True),
    Column("KEPT FOR", "why"),
)
FILE_COLUMNS = (Column("FILE", "path"), Column("SIZE", "size_bytes", right=True))


def shortened(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows whose digests are cut to what tells them apart: whole ones leave no room for others."""
    return [{**row, "digest": row["digest"][:SHOWN_DIGEST_CHARS]} for row in rows]


def table(rows: Sequence[dict[str, Any]], columns: Iterable[Column]) -> Table:
    """Rows of the API as a table without lines, so that it also pipes well."""
    drawn = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    columns = tuple(columns)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.right else "left"
        drawn.add_column(column.heading, justify=justify, no_wrap=True)
    for row in rows:
        drawn.add_row(*(cell(column.key, row.get(column.key)) for column in columns))
    return drawn


def cell(key: str, value: object) -> Text:
    """One value as people read it: sizes for `*_bytes`, durations for `*_s`, local times for
    `*_at`, states coloured."""
    match value:
        case None | "" | [] | {}:
            return Text("-", "bright_black")
        case bool():
            return Text("yes" if value else "no")
        case int() | float() if key.endswith("_bytes"):
            return Text(size(value))
        case int() | float() if key.endswith("_s"):
            return Text(f"{value:.0f} s")
        case int() | float() if key.endswith("_at"):
            return Text(datetime.fromtimestamp(value).astimezone().isoformat(" ", "seconds"))
        case str() if key == "state":
            return Text(value, STATE_STYLES.get(value, ""))
        case list() | tuple() if all(isinstance(item, str | int | float) for item in value):
            return Text(", ".join(str(item) for item in value))
        case _:
            return Text(str(value))


def details(body: dict[str, Any]) -> Table:
    """A nested JSON object as indented `key  value` lines."""
    drawn = Table.grid(padding=(0, 2, 0, 0))
    drawn.add_column(style="bold", no_wrap=True)
    drawn.add_column(overflow="fold")
    for label, key, value in _flat(body, depth=0):
        drawn.add_row(label, value if isinstance(value, Text) else cell(key, value))
    return drawn


def _flat(body: dict[str, Any], depth: int) -> Iterable[tuple[str, str, object]]:
    for key, value in body.items():
        label = "  " * depth + key
        if isinstance(value, dict) and value:
            yield label, key, Text("")
            yield from _flat(value, depth + 1)
        else:
            yield label, key, value
