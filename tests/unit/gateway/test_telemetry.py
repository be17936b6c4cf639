"""Logs hold no content, and are JSON where nobody looks on."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from stoker.telemetry import CONTENT_KEYS, configure_logging


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    configure_logging("info", stream)
    yield stream
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_events_are_json_lines_without_content(stream: io.StringIO) -> None:
    content = dict.fromkeys(CONTENT_KEYS, "secret")
    structlog.get_logger().info("request", request_id="r", total_ms=1.5, **content)
    [line] = stream.getvalue().splitlines()
    event = json.loads(line)
    assert (event["event"], event["request_id"], event["total_ms"]) == ("request", "r", 1.5)
    assert event["level"] == "info"
    assert "secret" not in line


def test_libraries_log_in_the_same_shape_and_below_the_level_nothing(stream: io.StringIO) -> None:
    logging.getLogger("some.library").warning("trouble with %s", "it")
    logging.getLogger("some.library").debug("hush")
    structlog.get_logger().debug("hush")
    [line] = stream.getvalue().splitlines()
    assert json.loads(line)["event"] == "trouble with it"
