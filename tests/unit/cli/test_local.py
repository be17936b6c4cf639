"""A platform as a child process: what a program learns when it does not come up."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from stoker.client.local import TAIL_LINES, local_platform, tail
from stoker.errors import StartupFailed


def test_a_child_that_ends_at_once_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    with (
        pytest.raises(StartupFailed, match="expected HOST:PORT"),
        local_platform(tmp_path, listen="nowhere"),
    ):
        pytest.fail("a platform came up on an address that is none")


def test_a_port_in_use_is_an_error_that_names_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(StartupFailed, match=address),
            local_platform(tmp_path, listen=address, warm_pool=0),
        ):
            pytest.fail("two platforms share a port")


def test_the_tail_of_a_log_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {n}\n" for n in range(1000)))
    lines = tail(log).splitlines()
    assert len(lines) == TAIL_LINES
    assert lines[-1] == "line 999"
