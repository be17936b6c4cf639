"""The platform's nouns as the control plane's JSON shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from stoker.domain import Artifact, Function, Revision, Timeline
from stoker.gateway.timelines import startup_of
from stoker.scheduler.lease import InstanceStatus

Json = dict[str, Any]

# What a function is, by the best of its instances; without one it is cold, and that is no fault.
_STATES = ("ready", "starting", "draining", "stopping")
COLD = "cold"


def function_row(
    function: Function, latest: Revision, instances: Sequence[InstanceStatus], waiting: int
) -> Json:
    """One line of a list of functions."""
    states = {instance.state for instance in instances}
    return {
        "name": function.name,
        "state": next((state for state in _STATES if state in states), COLD),
        "instances": len(instances),
        "waiting": waiting,
        "revision": function.latest,
        "engine": latest.runtime.engine,
        "checkpoint_bytes": latest.checkpoint.size_bytes if latest.checkpoint else None,
        "created_at": function.created_at,
    }


def function_details(
    row: Json, function: Function, latest: Revision, last: Timeline | None
) -> Json:
    """All that is known of a function."""
    return {
        **row,
        "revisions": list(function.revisions),
        **_content(latest),
        "last_startup": startup_of(last) if last else None,
    }


def revision_view(revision: Revision) -> Json:
    """A revision as a deploy answers with it, and as the list of revisions shows it."""
    return {
        "revision": revision.id,
        "function": revision.function,
        "number": revision.number,
        "created_at": revision.created_at,
        "content_digest": revision.content_digest,
        **_content(revision),
    }


def instance_view(instance: InstanceStatus) -> Json:
    return asdict(instance)


def _content(revision: Revision) -> Json:
    return {
        "checkpoint": _artifact(revision.checkpoint),
        "source": _artifact(revision.source),
        "runtime": asdict(revision.runtime),
        "resources": asdict(revision.resources),
        "scale": asdict(revision.scale),
        "startup": asdict(revision.startup),
        "cache": asdict(revision.cache),
        "env": revision.env,
    }


def _artifact(artifact: Artifact | None) -> Json | None:
    if artifact is None:
        return None
    return {
        "digest": artifact.digest,
        "name": artifact.name,
        "size_bytes": artifact.size_bytes,
    }
