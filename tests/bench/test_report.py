"""The benchmark's own arithmetic and paperwork, on a stored report; nothing is measured here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from stoker.client.timeline import timeline_from

from .report import Report, markdown, read_json, write_json
from .row_cold import timeline_error
from .stats import quantile, summarise
from .streams import OPENAI, SOCKET, Reader

SAMPLE = Path(__file__).parent / "sample.json"
PAGE = Path(__file__).parent / "sample.md"


def test_the_page_is_made_from_the_report_alone() -> None:
    assert markdown(read_json(SAMPLE)) == PAGE.read_text()


def test_a_report_survives_being_written(tmp_path: Path) -> None:
    report = read_json(SAMPLE)
    write_json(report, tmp_path / "deep" / "again.json")
    assert read_json(tmp_path / "deep" / "again.json") == report


def test_the_stored_report_keeps_every_sample_beside_its_summary(tmp_path: Path) -> None:
    write_json(read_json(SAMPLE), tmp_path / "again.json")
    for row in json.loads((tmp_path / "again.json").read_text())["rows"]:
        for name, values in row["samples"].items():
            assert row["spread"][name]["n"] == len(values)
            assert row["spread"][name]["max"] == max(values)


def test_a_missed_target_is_shown_as_one() -> None:
    report = read_json(SAMPLE)
    assert not report.passed
    assert "| **missed** |" in markdown(report)
    met = report.model_copy(update={"rows": [row for row in report.rows if row.passed]})
    assert met.passed
    assert "missed" not in markdown(met)


@pytest.mark.parametrize(
    "change",
    [
        {"machine": None},
        {"commit": None},
        {"schema_version": 2},
        {"rows": [{"id": "half"}]},
        {"surprise": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_no_report_is_refused(change: dict[str, object]) -> None:
    body = {**read_json(SAMPLE).model_dump(), **change}
    with pytest.raises(ValidationError):
        Report.model_validate(body)


def test_quantiles_are_samples_that_were_measured() -> None:
    samples = [float(n) for n in range(200, 0, -1)]
    assert (quantile(samples, 0.99), quantile(samples, 0.9)) == (198.0, 180.0)
    assert quantile([5.0], 0.99) == 5.0
    assert quantile([1.0, 2.0, 3.0], 1.0) == 3.0
    assert quantile([1.0, 2.0, 3.0], 0.01) == 1.0


def test_a_summary_leaves_nothing_out() -> None:
    summary = summarise([1.0, 2.0, 100.0])
    assert (summary.n, summary.min, summary.median, summary.max) == (3, 1.0, 2.0, 100.0)


def test_the_timelines_error_counts_gaps() -> None:
    phases = [
        {"name": "queue", "start_ms": 0.0, "duration_ms": 30.0},
        {"name": "prefill", "start_ms": 50.0, "duration_ms": 50.0},
    ]
    body = {"request_id": "r", "cold": True, "total_ms": 100.0, "phases": phases}
    assert timeline_error(timeline_from(body), client_ms=100.0) == pytest.approx(0.2)


def test_a_stream_is_timed_by_its_text_wherever_its_chunks_are_cut() -> None:
    now = [0.0]
    reader = Reader(OPENAI, clock=lambda: now[0])
    stream = (
        b': ping\n\ndata: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"The',
        b' sea"}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"."}}]}\n\n',
        b'data: {"choices":[],"usage":{"completion_tokens":3},"stoker":{"generation":'
        b'{"queue_ms":250,"prefill_ms":1500}}}\n\ndata: [DONE]\n\n',
    )
    for chunk in stream:
        now[0] += 1.0
        reader.feed(chunk)
    streamed = reader.done()
    assert (streamed.first_s, streamed.last_s, streamed.end_s, streamed.tokens) == (3, 4, 5, 3)
    assert streamed.instance_s == 1.75


def test_the_sockets_frames_are_read_the_same_way() -> None:
    now = [0.0]
    reader = Reader(SOCKET, clock=lambda: now[0])
    for line in (
        b'{"kind":"prompt","epoch":0,"prompt_ids":[1,2]}\n',
        b'{"kind":"token","epoch":0,"index":0,"token":5,"text":""}\n',
        b'{"kind":"token","epoch":0,"index":1,"token":6,"text":"a"}\n',
        b'{"kind":"done","epoch":0,"finish_reason":"stop","prompt_tokens":2,"completion_tokens":2,'
        b'"queue_ms":500,"prefill_ms":1000}\n',
    ):
        now[0] += 1.0
        reader.feed(line)
    streamed = reader.done()
    assert (streamed.first_s, streamed.last_s, streamed.tokens) == (3, 3, 2)
    assert streamed.instance_s == 1.5


@pytest.mark.parametrize(
    ("dialect", "line"),
    [
        (OPENAI, b'data: {"error":{"message":"lost"}}\n'),
        (SOCKET, b'{"kind":"error","epoch":0,"error":{"message":"lost"}}\n'),
    ],
    ids=["platform", "socket"],
)
def test_a_broken_stream_is_never_a_sample(dialect: object, line: bytes) -> None:
    reader = Reader(dialect)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="lost"):
        reader.feed(line)
