"""`stoker up`: control plane and agent of one machine, wired together and run to the end.

The wiring happens here and only here. Both halves talk over the agent's socket as they would
across a cluster; nothing is passed between them in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import itertools
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import orjson
import structlog
import uvloop

from stoker.checkpoints.directory import DirectoryStore
from stoker.checkpoints.registry import Registry
from stoker.checkpoints.store import StoreUnreachable
from stoker.config import Settings
from stoker.domain import NodeId
from stoker.errors import BadRequest, Conflict, StokerError, StorageFull
from stoker.gateway.app import create_app
from stoker.gateway.deploys import Deploys
from stoker.gateway.instances import Instances
from stoker.gateway.upload_deploys import UploadDeploys
from stoker.listener import Listener, bind_tcp, bind_unix
from stoker.node.agent import Agent
from stoker.node.cache import NodeCache
from stoker.node.counters import Counters
from stoker.node.dram import Dram, lockable_bytes
from stoker.node.drivers.process import ProcessDriver
from stoker.node.local_cache import LocalCache
from stoker.node.registration import Registration, keep_registered
from stoker.node.server import create_agent_app
from stoker.node.tiers import Tiers
from stoker.scheduler.dispatcher import Dispatcher
from stoker.scheduler.keeper import Keeper
from stoker.scheduler.nodes import NodeDirectory
from stoker.store.catalog import Catalog
from stoker.store.sqlite import SqliteStore
from stoker.telemetry import configure_logging

# Net allocations between two collections, ten times CPython's own: a request makes few cycles.
COLLECT_AFTER_ALLOCATIONS = 10_000
MAX_SOCKET_PATH_BYTES = 107  # sockaddr_un of Linux, without the final zero: unix(7)

RECONCILE_DELAYS_S = (1.0, 2.0, 5.0, 15.0)  # the last one repeats until the store answers

if TYPE_CHECKING:
    from stoker.checkpoints.bucket_store import BucketStore
    from stoker.checkpoints.imports import Imports

Checkpoints: TypeAlias = "DirectoryStore | BucketStore"

log = structlog.get_logger(__name__)


def run(settings: Settings, ready_fd: int | None = None) -> None:
    """Serves until SIGINT or SIGTERM. Once it listens and the warm pool is full, one JSON line
    goes to `ready_fd`.

    Raises Conflict when the address or the home directory is taken, StorageFull when the home
    directory cannot be written.
    """
    configure_logging(settings.log_level)
    with _home(settings.home):
        try:
            uvloop.run(_serve(settings, ready_fd))
        except ExceptionGroup as group:
            raise _alone(group) from None


def _alone(group: ExceptionGroup) -> Exception:
    """The error in a group of one: what went wrong while the platform's tasks ran."""
    error: Exception = group
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def checkpoint_store(settings: Settings) -> Checkpoints:
    """Where checkpoints are kept. Raises BadRequest, StoreRefused."""
    if settings.store is None:
        return DirectoryStore(settings.home / "checkpoints")
    # Only here, since importing boto3 takes a third of a second.
    from stoker.checkpoints.bucket import Bucket, BucketName
    from stoker.checkpoints.bucket_store import BucketStore

    return BucketStore(Bucket(BucketName.parse(settings.store)))


async def _serve(settings: Settings, ready_fd: int | None) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    async with contextlib.AsyncExitStack() as closing:
        bound = closing.enter_context(bind_tcp(settings.host, settings.port))
        url = f"http://{settings.host}:{bound.getsockname()[1]}"
        store = await SqliteStore.open(settings.home / "stoker.db")
        closing.push_async_callback(store.close)
        catalog = Catalog(store)
        checkpoints = checkpoint_store(settings)
        closing.push_async_callback(checkpoints.close)
        registry = Registry(settings.home, catalog, checkpoints)
        recovered = await _recover(registry)
        deployed = [await catalog.revision(f.latest) for f in await catalog.functions()]
        tasks = await closing.enter_async_context(asyncio.TaskGroup())
        reconciled = asyncio.Event()
        following = [
            tasks.create_task(_reconcile(registry, recovered, reconciled), name="reconcile")
        ]
        directory = NodeDirectory(store, tasks)
        dispatcher = Dispatcher(directory, tasks, clock=time.monotonic, wall_clock=time.time)
        for revision in deployed:
            await dispatcher.deployed(revision)
        following.append(tasks.create_task(dispatcher.run(), name="follow nodes"))
        keeper = Keeper(store, catalog, directory)
        following.append(tasks.create_task(keeper.run(), name="keep copies"))
        imports = _imports(settings, checkpoints, registry)
        if imports is not None:
            importing = _run_after(reconciled, imports)
            following.append(tasks.create_task(importing, name="import folders"))
            if settings.deploy_uploads:
                deploys = Deploys(catalog, registry, dispatcher, time.time, imports)
                uploads = UploadDeploys(imports, deploys, catalog)
                following.append(tasks.create_task(uploads.run(), name="deploy uploads"))
        instances = Instances(lambda: {instance.id for instance in dispatcher.instances()})
        closing.callback(instances.close)
        app = create_app(
            catalog=catalog,
            registry=registry,
            leasing=dispatcher,
            instances=instances,
            nodes=directory,
            imports=imports,
            settings=settings,
        )
        gateway = Listener(app, bound, settings.drain_timeout_s)
        serving = tasks.create_task(gateway.run_until_stopped(), name="gateway")
        async with _agent(settings, store, checkpoints, tasks):
            await gateway.listening.wait()
            _settle()
            log.info("listening", url=url, home=str(settings.home))
            announcing = tasks.create_task(_announce(directory, url, ready_fd), name="announce")
            await stopping.wait()
            log.info("stopping", drain_timeout_s=settings.drain_timeout_s)
            announcing.cancel()
            dispatcher.close()
            gateway.stop()
            await serving
        for task in following:
            task.cancel()


async def _recover(registry: Registry) -> bool:
    """Whether the registry could be recovered now. Where its store does not answer it has to be
    reconciled as soon as that does; what is on the node can be served meanwhile."""
    try:
        await registry.recover()
    except StoreUnreachable as error:
        log.warning("store unreachable", error=error.message)
        return False
    return True


async def _run_after(reconciled: asyncio.Event, imports: Imports) -> None:
    """Imports folders once it is known what was imported before."""
    await reconciled.wait()
    await imports.run()


async def _reconcile(registry: Registry, recovered: bool, reconciled: asyncio.Event) -> None:
    """Reconciles the registry with its store when that answers again, unless it was recovered."""
    if recovered:
        reconciled.set()
        return
    for delay_s in itertools.chain(RECONCILE_DELAYS_S, itertools.repeat(RECONCILE_DELAYS_S[-1])):
        await asyncio.sleep(delay_s)
        try:
            await registry.reconcile()
        except StoreUnreachable as error:
            log.info("store unreachable", error=error.message)
        except StokerError as error:
            log.warning("store unusable", error=error.message)
            return
        else:
            log.info("store answers")
            reconciled.set()
            return


@contextlib.asynccontextmanager
async def _agent(
    settings: Settings, store: SqliteStore, checkpoints: Checkpoints, tasks: asyncio.TaskGroup
) -> AsyncIterator[None]:
    """Runs this machine's agent, registered under a lease, and ends all it started."""
    run_dir, log_dir = settings.home / "run", settings.home / "logs"
    driver = ProcessDriver(run_dir, log_dir, os.environ)
    node_id = NodeId(os.uname().nodename)
    agent = Agent(
        node_id,
        driver,
        await _tiers(settings, checkpoints, tasks),
        warm_pool=settings.warm_pool,
        memory_bytes=_memory_bytes(),
        name_worker=_worker_name,
        tasks=tasks,
    )
    socket = run_dir / "agent.sock"
    server = Listener(create_agent_app(agent), bind_unix(socket), settings.drain_timeout_s)
    serving = tasks.create_task(server.run_until_stopped(), name="agent")
    await server.listening.wait()
    registration = Registration(node_id=node_id, socket=socket)
    registered = tasks.create_task(keep_registered(store, registration), name="registration")
    agent.open()
    log.info("agent up", node=node_id, driver=driver.name, warm_pool=settings.warm_pool)
    try:
        yield
    finally:
        registered.cancel()
        await asyncio.wait([registered])
        await agent.close(settings.drain_timeout_s)
        server.stop()
        await serving
        socket.unlink(missing_ok=True)


def _imports(settings: Settings, checkpoints: Checkpoints, registry: Registry) -> Imports | None:
    """Makes checkpoints of the folders that people upload, where there is a bucket for that."""
    if isinstance(checkpoints, DirectoryStore):
        return None
    from stoker.checkpoints.imports import Imports

    return Imports(checkpoints.bucket, registry, settings.home / "imports")


async def _tiers(settings: Settings, checkpoints: Checkpoints, tasks: asyncio.TaskGroup) -> Tiers:
    """The node's copies: what lies on this machine anyway is served in place."""
    counters = Counters()
    dram = Dram(_dram_budget_bytes(settings.dram_size), counters)
    if isinstance(checkpoints, DirectoryStore):
        return Tiers(LocalCache(checkpoints), dram, counters, tasks)
    cache = NodeCache(
        settings.home / "cache",
        checkpoints,
        budget_bytes=settings.cache_size,
        counters=counters,
        tasks=tasks,
    )
    await cache.open()
    return Tiers(cache, dram, counters, tasks)


def _dram_budget_bytes(asked_bytes: int) -> int:
    """What of it this process may lock. Raises BadRequest for more than the machine has."""
    if asked_bytes > _memory_bytes():
        raise BadRequest(
            f"setting 'dram_size': {asked_bytes} bytes are more than this machine's"
            f" {_memory_bytes()}",
            param="dram_size",
        )
    granted_bytes = lockable_bytes(asked_bytes)
    if granted_bytes < asked_bytes:
        log.warning(
            "may not lock all of dram_size: raise `ulimit -l`, or LimitMEMLOCK= of the service",
            dram_size=asked_bytes,
            lockable_bytes=granted_bytes,
        )
    return granted_bytes


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


async def _announce(directory: NodeDirectory, url: str, ready_fd: int | None) -> None:
    """Says that the platform is up, once a start would find a warm worker."""
    await directory.warm()
    log.info("warm", url=url)
    if ready_fd is not None:
        os.write(ready_fd, orjson.dumps({"url": url, "warm": True}) + b"\n")
        os.close(ready_fd)


def _settle() -> None:
    """Takes all that was made so far out of the collector's rounds: it stays as long as the
    process, and a full round over it would sit in some request's first token."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER_ALLOCATIONS)


def _worker_name() -> str:
    return f"w-{uuid.uuid4().hex[:8]}"


@contextlib.contextmanager
def _home(home: Path) -> Iterator[None]:
    """Makes the home directory, for this user only, and keeps other platforms out of it."""
    longest = home / "run" / f"{_worker_name()}.sock"
    if len(os.fsencode(longest)) > MAX_SOCKET_PATH_BYTES:
        raise BadRequest(
            f"{home} is too long a path for Unix sockets ({MAX_SOCKET_PATH_BYTES} bytes in all); "
            "choose a shorter one with --home DIR",
            param="home",
        )
    try:
        for folder in (home, home / "run", home / "logs", home / "checkpoints"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (home / "lock").open("w")
    except OSError as error:
        raise StorageFull(
            f"cannot write to {home}: {error.strerror or error}; choose another with --home DIR"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(
                f"another platform uses {home}; stop it or choose another with --home DIR"
            ) from error
        # Sockets of workers that died with a killed platform.
        for stale in (home / "run").glob("*.sock"):
            stale.unlink()
        yield
