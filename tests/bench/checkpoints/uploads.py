"""Uploads of a model's folder to the bucket of a platform, in a process of its own:
`python -m tests.bench.checkpoints.uploads ORDER`.

Each has weights that nobody has seen. The clock runs from the moment when the last byte was handed
to the network to the first text of an answer.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.checkpoints.lines import Measured, end_when_told, say, tried
from tests.bench.checkpoints.models import WEIGHTS, renew
from tests.bench.checkpoints.results import UPLOAD, Upload
from tests.bench.disk import checkpoint_files
from tests.bench.loader.processes import MeasureFailedError
from tests.bench.loader.touch import Memory
from tests.bench.stage import COLD_TOKENS, PROMPT

from stoker.checkpoints.bucket import connect
from stoker.client.chat import chat, request_body
from stoker.client.http import Platform
from stoker.client.local import local_platform
from stoker.errors import FunctionNotFound, StokerError

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

EVENTS = {
    "QueueConfigurations": [
        {
            "QueueArn": "arn:minio:sqs::STOKER:webhook",
            "Events": ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"],
        }
    ]
}
IMPORT_TIMEOUT_S = 60.0
ASK_AGAIN_S = 0.02  # nothing tells a client that there is a function now
PLACES = 5  # that an upload's bytes go to: uploaded, staged, laid out, stored, the node's copy
# boto3 reports so many at a time, and what is left of a part only after its answer.
REPORTED_BYTES = 256 << 10
MANIFEST = "function.yaml"
ANSWER = "Paris"


@dataclass(frozen=True, slots=True)
class Order:
    """What to upload, from copies of `model` in `scratch`, to the empty `bucket`; the platform
    listens on `listen`, where the bucket's events are sent."""

    model: str
    bucket: str
    home: str
    scratch: str
    listen: str
    runs: int


@dataclass(frozen=True, slots=True)
class Scene:
    """A running platform that hears its bucket's events."""

    api: Platform
    client: S3Client
    order: Order

    def upload(self, numbers: Iterator[int]) -> None:
        """One upload, with weights that none before had, also none that failed; says what it
        took."""
        number = next(numbers)
        name = f"uploaded-{number}"
        folder = Path(self.order.scratch) / name
        shutil.copytree(self.order.model, folder)
        try:
            renew(folder / WEIGHTS, number)
            os.sync()  # nothing of it is written back meanwhile
            self.api.ready(warm=True)
            self.measure(name, folder)
        finally:
            shutil.rmtree(folder)
            with suppress(StokerError):  # it may not have come so far
                self.api.delete(name)

    def measure(self, name: str, folder: Path) -> None:
        files = checkpoint_files(folder)
        memory = Memory(PLACES * sum(path.stat().st_size for path in files))
        (folder / MANIFEST).write_text(f"name: {name}\n")
        for path in (*files, folder / MANIFEST):
            if path.name != WEIGHTS:
                self.put(name, path, [])
        gc.collect()
        memory.give_back()
        sent_at: list[float] = []
        self.put(name, folder / WEIGHTS, sent_at)
        completed = time.perf_counter()
        last_byte = max(sent_at)
        self.wait_for_function(name)
        deployed = time.perf_counter()
        messages = [{"role": "user", "content": PROMPT}]
        turn = chat(self.api, request_body(name, messages, temperature=0, max_tokens=COLD_TOKENS))
        assert turn.cold, "the request found a running instance"
        assert turn.first_token_ms is not None
        assert ANSWER in turn.text, f"answered {turn.text!r}"
        first_token_s = turn.first_token_ms / 1000
        upload = Upload(
            completed_s=completed - last_byte,
            deployed_s=deployed - last_byte,
            first_token_s=first_token_s,
            answered_s=deployed - last_byte + first_token_s,
        )
        say(Measured(UPLOAD, name, upload.answered_s, asdict(upload)))

    def put(self, name: str, path: Path, sent_at: list[float]) -> None:
        """Uploads a file as boto3 does by itself; `sent_at` gets the time of every piece of
        `REPORTED_BYTES`."""

        def heard(sent_bytes: int) -> None:
            if sent_bytes >= REPORTED_BYTES:
                sent_at.append(time.perf_counter())

        self.client.upload_file(
            str(path),
            self.order.bucket,
            f"models/{name}/{path.name}",
            Callback=heard,
        )

    def wait_for_function(self, name: str) -> None:
        """Returns when the upload has become a function."""
        deadline = time.monotonic() + IMPORT_TIMEOUT_S
        while True:
            try:
                self.api.function(name)
            except FunctionNotFound:
                if time.monotonic() > deadline:
                    raise MeasureFailedError("the upload is no function") from None
            else:
                return
            time.sleep(ASK_AGAIN_S)


def main() -> None:
    end_when_told()
    gc.disable()  # the client's own collector must not sit in a sample
    order = Order(**json.loads(sys.argv[1]))
    model_bytes = sum(path.stat().st_size for path in checkpoint_files(Path(order.model)))
    with closing(connect()) as client:
        client.create_bucket(Bucket=order.bucket)
        with (
            local_platform(
                Path(order.home),
                listen=order.listen,
                options=("--store", f"s3://{order.bucket}", "--deploy-uploads"),
            ) as local,
            Platform(local.url) as api,
        ):
            client.put_bucket_notification_configuration(
                Bucket=order.bucket,
                NotificationConfiguration=EVENTS,
            )
            say(Measured("upload_bytes", value=model_bytes))
            scene = Scene(api, client, order)
            numbers = itertools.count()
            for _ in range(order.runs):
                tried(UPLOAD, partial(scene.upload, numbers))


if __name__ == "__main__":
    main()
