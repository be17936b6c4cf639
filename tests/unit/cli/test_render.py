"""What is drawn, character by character, at 80 columns and without colour."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console, RenderableType

from stoker.client.progress import ColdStartMeter, byte_progress
from stoker.client.render import Span, milliseconds, waterfall
from stoker.client.tables import INSTANCE_COLUMNS, cell, details, size, table
from stoker.client.timeline import timeline_from

from .conftest import TIMELINE

COLD = """\
chat  cold start, first token after 112.4 ms
phase      0                       112 ms    ms  expected  from
queue      ▏                               0.02
schedule   ▏                                0.1
provision  ▍                                1.4       2.0
fetch      ▏                               0.00      0.00
load       ███▊                            12.5      11.8  dram 269 MB 21.5 GB/s
init          ██████████▋                  37.2      35.0
prefill                 █████████████████  61.2      58.0
"""

WARM = """\
chat  warm, first token after 20.0 ms
phase    0                                                           20 ms    ms
queue    ████████████████▎                                                   5.0
prefill                  █████████████████████████████████████████████████  15.0
"""


def drawn(renderable: RenderableType, **options: object) -> str:
    console = Console(width=80, file=StringIO(), **options)  # type: ignore[arg-type]
    console.print(renderable)
    assert isinstance(console.file, StringIO)
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines) or options.get("force_terminal")
    return "".join(line.rstrip() + "\n" for line in lines)


def test_a_cold_start_as_a_waterfall() -> None:
    assert drawn(waterfall(timeline_from(TIMELINE))) == COLD


def test_a_warm_request_has_no_column_for_what_is_not_there() -> None:
    warm = {
        **TIMELINE,
        "cold": False,
        "total_ms": 20.0,
        "phases": [
            {"name": "queue", "start_ms": 0.0, "duration_ms": 5.0},
            {"name": "prefill", "start_ms": 5.0, "duration_ms": 15.0},
        ],
    }
    assert drawn(waterfall(timeline_from(warm))) == WARM


def test_colour_adds_escapes_and_nothing_else() -> None:
    from rich.text import Text

    coloured = drawn(
        waterfall(timeline_from(TIMELINE)), force_terminal=True, color_system="standard"
    )
    plain = "".join(Text.from_ansi(line).plain.rstrip() + "\n" for line in coloured.splitlines())
    assert "\x1b[" in coloured
    assert plain == COLD


@pytest.mark.parametrize(
    ("span", "cells"),
    [
        (Span(0, 1, thin=False, style=""), "██████████"),
        (Span(0.5, 1, thin=False, style=""), "     █████"),
        (Span(0.25, 0.5, thin=False, style=""), "  ███     "),
        (Span(0, 0.0625, thin=False, style=""), "▋         "),
        (Span(0.3, 0.3001, thin=True, style=""), "   ▏      "),
        (Span(1, 1, thin=True, style=""), "         ▏"),
        (Span(0.99, 1.5, thin=False, style=""), "         █"),
    ],
)
def test_bars_are_exact_to_an_eighth_and_never_leave_their_line(span: Span, cells: str) -> None:
    assert span.cells(10, ascii_only=False) == cells


def test_bars_in_ascii() -> None:
    assert Span(0.5, 1, thin=False, style="").cells(10, ascii_only=True) == "     #####"
    assert Span(0.5, 0.5, thin=True, style="").cells(10, ascii_only=True) == "     |    "


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0.00"), (0.04, "0.04"), (3.21, "3.2"), (99.94, "99.9"), (1234.5, "1,234")],
)
def test_milliseconds(value: float, shown: str) -> None:
    assert milliseconds(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0.0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (269_060_552, "269 MB"),
        (2.34e9, "2.3 GB"),
        (5e12, "5.0 TB"),
    ],
)
def test_size(value: float, shown: str) -> None:
    assert size(value) == shown


def test_a_table_of_instances() -> None:
    row = {"id": "i1", "function": "f", "revision": "f-00001", "state": "ready", "active": 1,
           "slots": 8, "pid": 42, "idle_deadline_s": None}  # fmt: skip
    heading, line = drawn(table([row], INSTANCE_COLUMNS)).splitlines()
    assert line.split() == ["i1", "f", "f-00001", "ready", "1", "8", "42", "-"]
    assert heading.startswith("INSTANCE  FUNCTION")


def test_details_indent_what_is_nested() -> None:
    body = {"name": "f", "scale": {"min": 0, "keep_alive_s": 300.0}, "revisions": ["a", "b"]}
    assert drawn(details(body)).splitlines() == [
        "name            f",
        "scale",
        "  min           0",
        "  keep_alive_s  300 s",
        "revisions       a, b",
    ]


def test_cells_read_as_their_unit_says() -> None:
    assert cell("size_bytes", 2_000_000).plain == "2.0 MB"
    assert cell("replicas", 0).plain == "0"
    assert cell("ready", True).plain == "yes"
    assert cell("pid", None).plain == "-"


def test_the_meter_names_the_phase_that_the_last_start_was_in() -> None:
    now = [100.0]
    meter = ColdStartMeter(timeline_from(TIMELINE), clock=lambda: now[0])
    shown = []
    for elapsed_s in (0.0, 0.01, 0.03, 0.1, 0.5):
        now[0] = 100.0 + elapsed_s
        shown.append(drawn(meter).split("s  ", 1)[1].strip())
    assert shown == [
        "waiting for a slot",
        "loading the weights",
        "preparing the engine",
        "reading the prompt",
        "longer than last time",
    ]
    unknown = drawn(ColdStartMeter(None, clock=lambda: now[0]))
    assert "first instance" in unknown


def test_progress_is_silent_where_there_is_no_terminal() -> None:
    console = Console(file=StringIO())
    with byte_progress(console) as report:
        report("hashing", 1, 2)
    assert isinstance(console.file, StringIO)
    assert console.file.getvalue() == ""


def test_progress_draws_each_stage_on_a_terminal() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=80)
    with byte_progress(console) as report:
        report("hashing", 1_000_000, 2_000_000)
        report("uploading", 500_000, 2_000_000)
    assert isinstance(console.file, StringIO)
    drawing = console.file.getvalue()
    assert "hashing" in drawing
    assert "1.0/2.0 MB" in drawing
    assert "0.5/2.0 MB" in drawing
