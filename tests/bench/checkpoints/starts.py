"""Cold starts at one end of a link, in a process of its own there:
`python -m tests.bench.checkpoints.starts ORDER`.

Runs a platform over a bucket that the environment finds, deploys a model, and starts it again and
again, on a node that does not have the checkpoint, has it on its disk, or has it in memory. In the
same rounds it reads the weights' object from the bucket by raw parallel GETs.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.checkpoints.lines import Measured, end_when_told, say, tried
from tests.bench.checkpoints.results import EMPTY, PHASES, SSD, TIERS
from tests.bench.disk import DiskRate, checkpoint_files, recycle_and_evict
from tests.bench.loader.child import MAX_COLD_SHARE, MIN_WARM_SHARE, evict, warm
from tests.bench.loader.network import LOOPBACK
from tests.bench.loader.processes import MeasureFailedError
from tests.bench.loader.touch import Memory
from tests.bench.loader.web import STREAMS, raw_bytes_per_s
from tests.bench.stage import SLOTS, deploy_manifest

import stoker_loader
from stoker.checkpoints.bucket import connect
from stoker.checkpoints.bucket_store import FOLDER as CHECKPOINTS
from stoker.client.chat import Turn, chat, request_body
from stoker.client.http import Platform
from stoker.client.local import local_platform
from stoker.domain import Digest, Timeline
from stoker.lifecycle import CopyState
from stoker.node.copies import Copies

FUNCTION = "bench-start"
PROMPT = "Hi"
SETTLE_TIMEOUT_S = 120.0
SETTLE_PAUSE_S = 0.05
SIGNED_FOR_S = 86_400

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Order:
    """What to measure: `kinds` of starts of the model in `checkpoint`, from the empty `bucket`,
    whose server keeps its objects in the folder `served`; state goes to `home`."""

    checkpoint: str
    bucket: str
    served: str
    home: str
    kinds: tuple[str, ...]
    runs: int
    seed: int


@dataclass(frozen=True, slots=True)
class Scene:
    """A running platform with the function deployed, and the node's copy of its checkpoint, which
    is in `folder` while there is one."""

    api: Platform
    node: str
    digest: Digest
    folder: Path
    served: Path
    disk: DiskRate
    checkpoint_bytes: int

    def ask(self) -> Turn:
        """One token, so that an answer ends with what is measured; the client's own clock."""
        messages = [{"role": "user", "content": PROMPT}]
        turn = chat(self.api, request_body(FUNCTION, messages, temperature=0, max_tokens=1))
        assert turn.cold, "the request found a running instance"
        assert turn.first_token_ms is not None, "the model answered nothing"
        # A copy that is still on its way would be given up with the instance.
        self.until(lambda copy: copy is not None and copy["state"] == CopyState.WHOLE)
        return turn

    def start(self, kind: str, text: str) -> None:
        """One start with the bytes where `kind` has them; says how long it took."""
        self.to_zero()
        if kind == EMPTY:
            self.give_up()
        self.api.ready(warm=True)
        # Both at once: what the page cache takes of a fetch, and what the worker allocates.
        memory = Memory(self.checkpoint_bytes)
        disk_bytes_per_s = 0.0
        if kind == EMPTY:
            serve_from_memory(self.served)
        elif kind == SSD:
            recycle_and_evict(self.folder)
            # Behind it: both read what the same reader read before.
            disk_bytes_per_s = self.disk.bytes_per_s(checkpoint_files(self.folder))
            if (share := evict(self.folder)) > MAX_COLD_SHARE:
                raise MeasureFailedError(f"{share:.1%} of the checkpoint is in the page cache")
        elif (share := warm(self.folder)) < MIN_WARM_SHARE:
            raise MeasureFailedError(f"{share:.1%} of the checkpoint is in the page cache")
        gc.collect()
        memory.give_back()
        turn = self.ask()
        assert turn.text == text, f"answered {turn.text!r} instead of {text!r}"
        assert turn.first_token_ms is not None
        timeline = self.api.startup(turn.request_id)
        check_tier(kind, timeline)
        if disk_bytes_per_s:
            say(Measured("disk", value=disk_bytes_per_s))
        say(Measured("start", kind, turn.first_token_ms / 1000, phases_ms(timeline)))

    def to_zero(self) -> None:
        """Stops the instance; nobody needs the copy any more when this returns."""
        self.api.scale(FUNCTION, 0)
        self.until(lambda copy: copy is None or copy["holders"] == 0)

    def give_up(self) -> None:
        """Has the node remove its copy."""
        self.api.evict(self.node, self.digest)
        self.until(lambda copy: copy is None)
        assert not self.folder.exists(), "the copy was given up and is there"

    def until(self, condition: Callable[[Json | None], bool]) -> None:
        """Waits for the node's copy to be so. Nothing announces it, so the node is asked."""
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while not condition(copy := self.copy()):
            if time.monotonic() > deadline:
                raise MeasureFailedError(f"the node's copy stays as it is: {copy}")
            time.sleep(SETTLE_PAUSE_S)

    def copy(self) -> Json | None:
        """What the node says of its copy; None where there is none."""
        copies = self.api.cache(self.node)["copies"]
        return next((copy for copy in copies if copy["digest"] == self.digest), None)


def check_tier(kind: str, timeline: Timeline) -> None:
    """The bytes came from where they should have: a start is never called what it was not."""
    tiers = {phase.tier for phase in timeline.phases if phase.tier}
    wanted = TIERS[kind]
    right = wanted in tiers if kind == EMPTY else tiers == {wanted}
    if not right:
        found = ", ".join(sorted(tiers)) or "nowhere"
        raise MeasureFailedError(f"{kind}: the bytes came from {found}")


def phases_ms(timeline: Timeline) -> dict[str, float]:
    """Every phase, also those that this start did not have; one may be there twice."""
    found = dict.fromkeys(PHASES, 0.0)
    for phase in timeline.phases:
        found[phase.name] += phase.duration_ms
    return found


def measure(order: Order, scene: Scene, url: str, weights_bytes: int) -> None:
    """Rounds of starts and raw GETs, in random order."""
    scene.api.ready(warm=True)
    first = scene.ask()  # the first start ever is nobody's measurement
    say(Measured("checkpoint_bytes", value=scene.checkpoint_bytes))
    say(Measured("prompt_tokens", value=first.prompt_tokens or 0))
    calls: dict[str, Callable[[], None]] = {
        kind: partial(scene.start, kind, first.text) for kind in order.kinds
    }
    if EMPTY in order.kinds:
        for streams in STREAMS:
            calls[f"{streams} curl"] = partial(read_raw, scene.served, url, weights_bytes, streams)
    rng = random.Random(order.seed)
    for _ in range(order.runs):
        for name in rng.sample(list(calls), len(calls)):
            tried(name, calls[name])


def serve_from_memory(served: Path) -> None:
    """Has the page cache hold what the server serves, for whom one drive is not read directly."""
    stoker_loader.prefetch(served)
    found = stoker_loader.residency(served)
    share = found.resident_bytes / found.checkpoint_bytes
    if share < MIN_WARM_SHARE:
        raise MeasureFailedError(f"{share:.1%} of the server's files are in the page cache")


def read_raw(served: Path, url: str, size_bytes: int, streams: int) -> None:
    """The weights' object once, as fast as curl can; says how fast that was."""
    serve_from_memory(served)
    # This process is at the link's end already: nothing is to be put before curl.
    rate = raw_bytes_per_s(LOOPBACK, url, size_bytes, streams)
    say(Measured("raw", f"{streams} curl", rate))


def main() -> None:
    end_when_told()
    gc.disable()  # the client's own collector must not sit in a sample
    order = Order(**json.loads(sys.argv[1]))
    home, checkpoint = Path(order.home), Path(order.checkpoint)
    with closing(connect()) as client:
        client.create_bucket(Bucket=order.bucket)
        with (
            local_platform(home, options=("--store", f"s3://{order.bucket}")) as local,
            Platform(local.url) as api,
        ):
            deploy_manifest(
                api,
                home / "functions" / FUNCTION,
                {
                    "name": FUNCTION,
                    "model": {"uri": str(checkpoint)},
                    "runtime": {"args": {"max_model_len": 2048, "max_batch": SLOTS}},
                    "resources": {"memory": "4Gi"},
                    "scale": {"max": 1, "target": SLOTS, "hard_limit": SLOTS, "keep_alive": "1h"},
                },
            )
            artifact = api.function(FUNCTION)["checkpoint"]
            (node,) = api.nodes()
            digest = Digest(artifact["digest"])
            folder = Copies(home / "cache").path(digest)
            listed = client.list_objects_v2(
                Bucket=order.bucket, Prefix=f"{CHECKPOINTS}{folder.name}/"
            )
            weights = max(listed["Contents"], key=lambda found: found["Size"])
            url = client.generate_presigned_url(
                "get_object",
                Params={"Bucket": order.bucket, "Key": weights["Key"]},
                ExpiresIn=SIGNED_FOR_S,
            )
            scene = Scene(
                api=api,
                node=node["node_id"],
                digest=digest,
                folder=folder,
                served=Path(order.served),
                disk=DiskRate(),
                checkpoint_bytes=artifact["size_bytes"],
            )
            measure(order, scene, url, weights["Size"])


if __name__ == "__main__":
    main()
