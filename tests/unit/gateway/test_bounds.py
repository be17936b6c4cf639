"""What is kept is bounded, and what is gone is closed."""

from __future__ import annotations

from pathlib import Path

import pytest

from stoker.domain import (
    FunctionName,
    InstanceId,
    Phase,
    PhaseName,
    RequestId,
    Resources,
    Revision,
    RevisionId,
    RuntimeSpec,
    ScalePolicy,
    StartupPolicy,
    Timeline,
)
from stoker.errors import RequestNotFound
from stoker.gateway.exchange import Invoke
from stoker.gateway.instances import Instances, Unreachable
from stoker.gateway.timelines import Timelines
from stoker.scheduler.lease import Lease


def timeline(request_id: str, *, cold: bool = False) -> Timeline:
    phases = (Phase(PhaseName.PREFILL, 0.0, 1.0),)
    return Timeline(RequestId(request_id), FunctionName("f"), RevisionId("f-1"), cold, 1.0, phases)


def lease(name: str, folder: Path) -> Lease:
    revision = Revision(
        RevisionId("f-1"),
        FunctionName("f"),
        1,
        0.0,
        "",
        None,
        None,
        RuntimeSpec(),
        Resources(),
        ScalePolicy(),
        StartupPolicy(),
        {},
    )
    instance, request = InstanceId(name), RequestId("r")
    return Lease(request, instance, revision, folder / name, False, 0.0, 0.0, ())


def test_the_oldest_timeline_goes_first() -> None:
    timelines = Timelines(limit=2)
    for request_id in ("a", "b", "a", "c"):
        timelines.record(timeline(request_id))
    assert len(timelines) == 2
    assert timelines.get(RequestId("a")).request_id == "a"
    with pytest.raises(RequestNotFound, match="'b'"):
        timelines.get(RequestId("b"))


def test_the_last_cold_start_outlives_warm_requests() -> None:
    timelines = Timelines(limit=1)
    timelines.record(timeline("cold", cold=True))
    timelines.record(timeline("warm"))
    kept = timelines.last_cold(FunctionName("f"))
    assert kept is not None
    assert kept.request_id == "cold"
    timelines.forget(FunctionName("f"))
    assert timelines.last_cold(FunctionName("f")) is None


async def _dial(instances: Instances, name: str, folder: Path) -> None:
    with pytest.raises(Unreachable, match=name):
        async with instances.open(lease(name, folder), Invoke(RequestId("r"), None)):
            pytest.fail("nobody listens there")


async def test_the_longest_unused_peer_is_let_go_of(tmp_path: Path) -> None:
    instances = Instances(lambda: {InstanceId(name) for name in "abc"}, limit=2)
    for name in "abc":
        await _dial(instances, name, tmp_path)
    assert len(instances) == 2
    instances.close()
    assert len(instances) == 0


async def test_peers_that_are_gone_are_let_go_of(tmp_path: Path) -> None:
    running = {InstanceId("a"), InstanceId("b")}
    instances = Instances(lambda: running)
    await _dial(instances, "a", tmp_path)
    running.remove(InstanceId("a"))
    await _dial(instances, "b", tmp_path)
    assert len(instances) == 1
    instances.close()
