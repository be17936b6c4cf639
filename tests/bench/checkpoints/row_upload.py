"""From a folder that somebody uploads to the bucket to the first answer of its model."""

from __future__ import annotations

from dataclasses import fields

from tests.bench.checkpoints.results import UPLOAD, Results, Upload
from tests.bench.report import Row
from tests.bench.stats import median

MAX_ANSWERED_S = 2.0


def upload_row(results: Results) -> Row:
    samples = {
        part.name: [float(getattr(upload, part.name)) for upload in results.uploads]
        for part in fields(Upload)
    }
    medians = {name: median(values) for name, values in samples.items()}
    (upload_bytes,) = results.upload_bytes
    return Row(
        id=UPLOAD,
        question=f"a model's folder of {upload_bytes / 1e6:.0f} MB uploaded to the bucket: its "
        "last byte to the first text of an answer",
        target=f"<= {MAX_ANSWERED_S:g} s",
        figure=f"{medians['answered_s']:.2f} s (a function after {medians['deployed_s']:.2f} s, "
        f"cold start {medians['first_token_s']:.2f} s)",
        passed=medians["answered_s"] <= MAX_ANSWERED_S,
        method="MinIO on loopback sends its events to the platform's webhook. boto3 uploads a "
        "copy of SmolLM2 to `models/NAME/`, the weights last, and the clock starts when their "
        "last byte is handed to the network. Each copy has weights in every 64 KiB that none had "
        "before, so that nothing of it is known already. A `function.yaml` is uploaded beside "
        "them, which `--deploy-uploads` deploys: no command tells the platform of the folder. The "
        "client looks every 20 ms whether there is such a function, and then asks it at once. The "
        "warm pool is full when it begins, and the client gives back memory of five times the "
        "model's size, touched ahead, just before it sends the weights.",
        samples=samples,
    )
