"""What the dispatcher has agents do: calls that it never waits for, whose failures are events."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine

import structlog

from stoker.domain import Digest, InstanceId, NodeId
from stoker.errors import InstanceNotFound, StokerError
from stoker.node.agent import STOP_GRACE_S
from stoker.node.wire import StartInstance
from stoker.scheduler.events import Event, InstanceExited, Start
from stoker.scheduler.nodes import NodeDirectory
from stoker.scheduler.view import Instance

log = structlog.get_logger(__name__)


class NodeCalls:
    """Every call is a task of its own; `report` gets the event when one fails."""

    def __init__(
        self, directory: NodeDirectory, tasks: asyncio.TaskGroup, report: Callable[[Event], None]
    ) -> None:
        self._directory = directory
        self._tasks = tasks
        self._report = report
        self._under_way: set[asyncio.Task[None]] = set()
        self._starts: dict[InstanceId, asyncio.Task[None]] = {}  # not yet acknowledged

    def start(self, action: Start, instance_id: InstanceId) -> None:
        self._starts[instance_id] = self._call(
            self._start(action, instance_id), f"start {instance_id}"
        )

    def stop(self, instance: Instance, reason: str) -> None:
        self._call(self._stop(instance, reason), f"stop {instance.id}")

    def stop_orphan(self, node: NodeId, instance_id: InstanceId) -> None:
        """Stops what runs on a node and that nobody here asked for."""
        self._call(self._stop_orphan(node, instance_id), f"stop {instance_id}")

    def expect(self, node: NodeId, checkpoint: Digest) -> None:
        """Has a node's blank workers made ready for a checkpoint."""
        self._call(self._expect(node, checkpoint), f"expect on {node}")

    async def cancel(self) -> None:
        """Returns when no call is under way any more."""
        for task in self._under_way:
            task.cancel()
        if self._under_way:
            await asyncio.wait(self._under_way)

    def _call(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = self._tasks.create_task(work, name=name)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    async def _start(self, action: Start, instance_id: InstanceId) -> None:
        revision = action.revision
        request = StartInstance(
            instance_id=instance_id,
            function=revision.function,
            revision=revision.id,
            checkpoint=revision.checkpoint.digest if revision.checkpoint else None,
            source=revision.source.digest if revision.source else None,
            engine=revision.runtime.engine,
            handler=revision.runtime.handler,
            args=revision.runtime.args,
            options=revision.runtime.options,
            env=revision.env,
            threads=max(1, math.ceil(revision.resources.cpu)),
        )
        try:
            await self._directory.client(action.node).start(request)
        except StokerError as error:
            self._report(InstanceExited(revision.function, instance_id, error))
        finally:
            del self._starts[instance_id]

    async def _stop(self, instance: Instance, reason: str) -> None:
        function = instance.revision.function
        log.info("stopping", function=function, instance=instance.id, reason=reason)
        if (start := self._starts.get(instance.id)) is not None:
            await asyncio.wait([start])  # a stop must not overtake its start
        try:
            await self._directory.client(instance.node).stop(instance.id, STOP_GRACE_S)
        except InstanceNotFound:
            self._report(InstanceExited(function, instance.id, None))
        except StokerError as error:
            # Its node is gone or hangs; the lease of the node's registration decides which.
            log.warning("cannot stop", instance=instance.id, error=error.message)

    async def _stop_orphan(self, node: NodeId, instance_id: InstanceId) -> None:
        log.warning("stopping an instance that nobody asked for", node=node, instance=instance_id)
        try:
            await self._directory.client(node).stop(instance_id, 0)
        except StokerError as error:
            log.warning("cannot stop", instance=instance_id, error=error.message)

    async def _expect(self, node: NodeId, checkpoint: Digest) -> None:
        try:
            await self._directory.client(node).expect(checkpoint)
        except StokerError as error:
            log.info("node not told what to expect", node=node, error=error.message)
