"""What happens to the platform itself: killed, started twice, without a disk or a port."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from e2e.conftest import run_up
from stoker.client.local import local_platform
from stoker.errors import StartupFailed


def test_kill_9_of_the_platform_loses_no_function_and_leaves_no_process(
    tmp_path: Path, function_folder: Callable[..., Path]
) -> None:
    home = tmp_path / "home"
    platforms = run_up(home, warm_pool=1)
    up = next(platforms)
    revision = up.deploy(function_folder("kept"))
    assert up.invoke("kept", {"a": 1}).status_code == 200
    children = psutil.Process(up.local.pid).children(recursive=True)
    assert len(children) >= 1
    # Something that a crash in the middle of an upload leaves behind.
    upload = up.http.post(
        "/v1/uploads",
        json={
            "kind": "checkpoint",
            "files": [{"path": "config.json", "size_bytes": 2, "blake3": "0" * 64}],
        },
    )
    assert upload.status_code == 201
    os.kill(up.local.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    platforms.close()

    for again in run_up(home, warm_pool=1):
        answer = again.invoke("kept", {"a": 2})
        assert answer.json() == {"a": 2}
        assert answer.headers["x-function-revision"] == revision
        assert again.http.get("/v1/checkpoints").json()["checkpoints"] == []


def test_sigterm_ends_everything_in_order(
    tmp_path: Path, function_folder: Callable[..., Path]
) -> None:
    for up in run_up(tmp_path / "home", warm_pool=1):
        # A function that always wants an instance must not get a new one while all end.
        up.deploy(function_folder("always", scale={"min": 1}))
        assert up.invoke("always", 1).json() == 1
        children = psutil.Process(up.local.pid).children(recursive=True)
        assert children
    assert not any(child.is_running() for child in children)
    assert list((tmp_path / "home" / "run").glob("*.sock")) == []


def stoker_up(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stoker.cli", "up", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_port_in_use_is_named_with_the_next_step(tmp_path: Path) -> None:
    for up in run_up(tmp_path / "home", warm_pool=0):
        listen = up.local.url.removeprefix("http://")
        second = stoker_up("--home", str(tmp_path / "other"), "--listen", listen)
        assert second.returncode == 1
        assert listen in second.stderr
        assert "--listen" in second.stderr
        same_home = stoker_up("--home", str(tmp_path / "home"), "--listen", "127.0.0.1:0")
        assert same_home.returncode == 1
        assert "another platform uses" in same_home.stderr


@pytest.fixture
def small_disk(tmp_path: Path):  # type: ignore[no-untyped-def]
    """A real file system of 4 MiB that can be made read-only."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mount = tmp_path / "disk"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", mount], check=True)
    yield mount
    subprocess.run(["umount", "--lazy", mount], check=True)


def test_a_read_only_home_is_named_with_the_next_step(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    result = stoker_up("--home", str(small_disk / "home"), "--listen", "127.0.0.1:0")
    assert result.returncode == 1
    assert "--home" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_disk_that_fills_during_a_push_is_a_507_and_leaves_room_again(
    small_disk: Path, tmp_path: Path
) -> None:
    big = os.urandom(16 << 20)
    for up in run_up(small_disk / "home", warm_pool=0):
        opened = up.http.post(
            "/v1/uploads",
            json={
                "kind": "source",
                "files": [{"path": "data.bin", "size_bytes": len(big), "blake3": "0" * 64}],
            },
        )
        answer = opened
        if opened.status_code == 201:
            upload_id = opened.json()["upload_id"]
            answer = up.http.put(f"/v1/uploads/{upload_id}/files/data.bin", content=big)
        assert answer.status_code == 507
        assert answer.json()["code"] == "storage_full"
        assert up.http.get("/v1/functions").status_code == 200


def test_the_platform_says_why_it_did_not_come_up(tmp_path: Path) -> None:
    with (
        pytest.raises(StartupFailed, match="HOST:PORT"),
        local_platform(tmp_path / "home", listen="nonsense"),
    ):
        pass
