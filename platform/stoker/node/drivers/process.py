"""Workers as child processes of the agent: no isolation, but nothing to install either."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from stoker.errors import StartupFailed
from stoker.node.drivers import priority
from stoker.node.drivers.base import Exit, Worker
from stoker.node.logs import LONGEST_LINE_BYTES, LogBuffer

BLANK_TIMEOUT_S = 120.0  # from exec to listening; imports from a cold disk take tens of seconds
KILL_TIMEOUT_S = 10.0  # for the kernel to reap what was killed
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
# How long an idle compute thread spins before it sleeps, in libgomp's rounds (about 1 ms). By
# default it spins for many milliseconds; as soon as two workers share cores it then holds the very
# core that the thread it waits for needs, and a prefill takes ten times as long. Sleeping at once
# would cost a lone worker a third of its speed.
COMPUTE_THREADS = {"GOMP_SPINCOUNT": "20000"}
# A forward allocates and frees the same large buffers again and again. glibc would return them to
# the kernel each time, and touching fresh pages again costs more than what is computed in them.
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
    "MALLOC_TOP_PAD_": str(16 << 20),
}


class ProcessDriver:
    """Spawns `python -m stoker_runtime` with its socket and log under `run_dir` and `log_dir`."""

    name = "process"

    def __init__(self, run_dir: Path, log_dir: Path, environ: Mapping[str, str]) -> None:
        self._run_dir = run_dir
        self._log_dir = log_dir
        self._spawning: set[int] = set()
        self._env = {key: environ[key] for key in PASSED_ON if key in environ}

    async def spawn(self, worker_id: str, *, background: bool) -> Worker:
        socket = self._run_dir / f"{worker_id}.sock"
        ready_read, ready_write = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "stoker_runtime"),
                *("--socket", str(socket)),
                *("--parent-pid", str(os.getpid())),
                *("--ready-fd", str(ready_write)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(ready_write,),
                env=self._env | COMPUTE_THREADS | ALLOCATOR | {"PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # so that its descendants can be ended with it
                limit=LONGEST_LINE_BYTES,
            )
        except OSError as error:
            os.close(ready_read)
            raise StartupFailed(f"cannot start a worker process: {error}") from error
        finally:
            os.close(ready_write)
        worker = ProcessWorker(
            worker_id, socket, process, LogBuffer(self._log_dir / f"{worker_id}.log")
        )
        if background:
            priority.lower(process.pid)
        self._spawning.add(process.pid)
        try:
            async with asyncio.timeout(BLANK_TIMEOUT_S):
                listening = await _read_all(ready_read)
        except TimeoutError:
            await worker.stop(0)
            raise StartupFailed(
                f"a worker was not ready within {BLANK_TIMEOUT_S:.0f} s",
                details={"log_tail": list(worker.log.tail())},
            ) from None
        except asyncio.CancelledError:
            await worker.stop(0)
            raise
        finally:
            self._spawning.discard(process.pid)
        if not listening:
            ended = await worker.stop(0)
            raise StartupFailed(
                f"a worker ended before it was ready ({ended})",
                details={"log_tail": list(worker.log.tail())},
            )
        return worker

    def hurry(self) -> None:
        for pid in self._spawning:
            priority.restore(pid)


class ProcessWorker:
    """One worker process, its socket and its log."""

    def __init__(
        self, worker_id: str, socket: Path, process: asyncio.subprocess.Process, log: LogBuffer
    ) -> None:
        self.id = worker_id
        self.pid = process.pid
        self.socket = socket
        self.log = log
        self._process = process
        # One reader owns the pipe and the exit; everyone else waits for it.
        self._ended = asyncio.create_task(self._read_to_end(), name=f"worker {worker_id}")

    def promote(self) -> None:
        priority.restore(self.pid)

    async def wait(self) -> Exit:
        return await asyncio.shield(self._ended)

    async def stop(self, grace_s: float) -> Exit:
        if not self._ended.done() and grace_s > 0:
            self._signal(signal.SIGTERM)
            with suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    return await self.wait()
        self._signal(signal.SIGKILL)
        async with asyncio.timeout(KILL_TIMEOUT_S):
            return await self.wait()

    def _signal(self, number: signal.Signals) -> None:
        """To the whole group when killing, so that nothing a handler started survives it."""
        with suppress(ProcessLookupError):
            if number is signal.SIGKILL:
                os.killpg(self.pid, number)
            else:
                self._process.send_signal(number)

    async def _read_to_end(self) -> Exit:
        assert self._process.stdout is not None
        exited = asyncio.create_task(self._process.wait())
        reading = asyncio.create_task(self._read_log(self._process.stdout))
        code = await exited
        # A descendant may hold the pipe open; the group is ended so that the log does end.
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        await reading
        self.log.close()
        self.socket.unlink(missing_ok=True)
        return Exit(code)

    async def _read_log(self, stream: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await stream.readuntil(b"\n")
            except asyncio.LimitOverrunError as error:
                line = await stream.readexactly(max(error.consumed, 1))
            except asyncio.IncompleteReadError as error:
                if error.partial:
                    self.log.write(error.partial)
                return
            self.log.write(line)


async def _read_all(descriptor: int) -> bytes:
    """Reads a pipe to its end; empty if the writer ended without a word."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
    )
    try:
        return await reader.read()
    finally:
        transport.close()
