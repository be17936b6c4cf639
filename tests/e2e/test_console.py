"""A person uploads a model in MinIO's own console, in a real browser, and asks it a question."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from e2e.conftest import EVENTS, deployed, imported, run_up
from stoker.checkpoints.bucket import connect
from support.minio import Minio

if TYPE_CHECKING:
    from playwright.sync_api import Page

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.model

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PAGE_TIMEOUT_MS = 60_000
BODY = {
    "model": "talk",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
    "max_tokens": 16,
}


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """A page of a browser that has seen nothing yet."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium is on PATH: `apt-get install chromium` brings one")
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            tmp_path / "profile",
            executable_path=browser,
            # As root, as in most containers, Chromium has no sandbox of its own.
            chromium_sandbox=os.geteuid() != 0,
            args=["--disable-gpu", "--no-first-run", "--disable-background-networking"],
        )
        context.set_default_timeout(PAGE_TIMEOUT_MS)
        yield context.new_page()
        context.close()


def linked(source: Path, folder: Path) -> Path:
    """The files of `source` in a folder of their own, without a second copy of them."""
    folder.mkdir(parents=True)
    for path in source.iterdir():
        try:
            os.link(path, folder / path.name)
        except OSError:  # on another file system
            shutil.copy(path, folder / path.name)
    return folder


def test_a_folder_dropped_in_the_console_answers(
    minio_with_events: Minio, address: str, page: Page, smollm2: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    linked(smollm2, models / "smol").joinpath("function.yaml").write_text("name: talk\n")
    client = connect()
    client.create_bucket(Bucket="shelf")
    options = ("--store", "s3://shelf", "--deploy-uploads")
    runs = run_up(tmp_path / "home", listen=address, options=options)
    up = next(runs)
    try:
        client.put_bucket_notification_configuration(
            Bucket="shelf", NotificationConfiguration=EVENTS
        )
        console = f"http://{minio_with_events.console}"
        page.goto(f"{console}/login")
        page.fill("#accessKey", minio_with_events.user)
        page.fill("#secretKey", minio_with_events.password)
        page.click("#do-login")
        page.wait_for_url("**/browser**")
        page.goto(f"{console}/browser/shelf")
        folders = page.locator("input[webkitdirectory]")  # behind "Upload Folder"
        folders.wait_for(state="attached")
        folders.set_input_files(models)
        imported(up)
        deployed(up)
        answer = up.http.post("/v1/chat/completions", json=BODY).json()
        assert "Paris" in answer["choices"][0]["message"]["content"]
    finally:
        with pytest.raises(StopIteration):
            next(runs)
