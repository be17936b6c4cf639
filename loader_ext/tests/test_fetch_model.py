"""Any sequence of fetches, ends, faults and damage, against what must hold after each of them.

A real server, real files, and for kills real processes. The map's bytes are read by the table of
the README, not by the code under test.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import stoker_loader as sl
from fetch_faults import Kills, replaces, wrong_bytes
from stoker_loader import errors
from support.object_store import ObjectStore, breaks_off, served, status
from versions import CHUNK, LENGTHS, Version

NAME = "model.safetensors"
MAX_KILLS = 2  # of processes in one sequence: each costs an interpreter's start
QUICK = sl.FetchLimits(streams=2, stall_s=20)
EXAMPLES, SEARCHED_EXAMPLES = 20, 150


@dataclass
class World:
    """What outlives one sequence: the server, and the two objects that it may hold."""

    store: ObjectStore
    versions: list[Version]
    outcomes: dict[str, int] = field(default_factory=dict)


class Enough(Exception):
    """Stops a fetch from its progress callback."""


CHILD = """
import sys, stoker_loader as sl
sys.stdin.readline()
sl.fetch(sys.argv[1], sys.argv[2], limits=sl.FetchLimits(streams=2))
"""

CHUNKS = st.integers(0, 2)
# Mostly none: a sequence of failures alone leads nowhere.
FAULTS = st.sampled_from(
    [
        *[None] * 8,
        *(("status", code) for code in (403, 404, 416, 429, 503)),
        *(("breaks off", times) for times in (1, 3)),
        *(("wrong bytes", times) for times in (1, 10)),
        *[("replaced", 1)] * 2,
    ]
)
Fault = tuple[str, int]
PASSING = (429, 500, 503)  # with few repetitions


def passes(fault: Fault | None) -> bool:
    """Whether a fetch of the right object outlives the fault."""
    match fault:
        case None | ("breaks off", _) | ("wrong bytes", 1):
            return True
        case ("status", code):
            return code in PASSING
        case _:
            return False


class Fetches(RuleBasedStateMachine):
    """`subject` is what the part on the disk is of: by tag or by digests, and which object."""

    def __init__(self, world: World, directory: Path) -> None:
        super().__init__()
        self._stack = ExitStack()
        self.world, self.store = world, world.store
        self.directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(dir=directory)))
        self.target = self.directory / NAME
        self.subject: tuple[str, int] | None = None  # what the part on the disk is of
        self.damaged: set[int] = set()  # chunks of it that we damaged since
        self.kills = 0
        self.complete: Version | None = None
        self._serve(0)

    def teardown(self) -> None:
        self._stack.close()

    # --- what is on the disk --------------------------------------------------------------------

    @property
    def part(self) -> Path:
        return self.target.with_name(NAME + ".part")

    @property
    def map(self) -> Path:
        return self.target.with_name(NAME + ".part.map")

    def arrived(self) -> set[int]:
        """The chunks that the map shows, by the README's table; none if it is no map."""
        try:
            data = self.map.read_bytes()
        except FileNotFoundError:
            return set()
        length = len(self.version.body)
        chunks = -(-length // CHUNK)
        if len(data) != 128 + 8 * -(-chunks // 64) + 16 * chunks or data[:8] != b"STKARRV1":
            return set()
        word = int.from_bytes(data[128:136], "little")
        return {chunk for chunk in range(chunks) if word >> chunk & 1}

    @property
    def version(self) -> Version:
        """What the server holds."""
        return next(one for one in self.world.versions if one.etag == self.store.etag)

    def _serve(self, number: int) -> None:
        version = self.world.versions[number]
        self.store.body, self.store.etag = version.body, version.etag

    def _subject_version(self) -> Version:
        assert self.subject is not None
        return self.world.versions[self.subject[1]]

    # --- rules ----------------------------------------------------------------------------------

    @rule(number=st.integers(0, 1))
    def another_object_is_served(self, number: int) -> None:
        self._serve(number)

    @precondition(lambda self: self.target.exists())
    @rule()
    def the_file_is_removed(self) -> None:
        self.target.unlink()
        self.complete = None

    @precondition(lambda self: self.part.exists())
    @rule(place=st.integers(0, sum(LENGTHS.values())))
    def a_byte_of_the_part_rots(self, place: int) -> None:
        with self.part.open("r+b") as file:
            file.seek(place)
            byte = file.read(1)
            if byte:
                file.seek(place)
                file.write(bytes([byte[0] ^ 0x40]))
                self.damaged.add(place // CHUNK)

    @precondition(lambda self: self.part.exists())
    @rule(length=st.integers(0, sum(LENGTHS.values())))
    def the_part_is_truncated(self, length: int) -> None:
        if length < self.part.stat().st_size:
            os.truncate(self.part, length)
            self.damaged |= set(range(length // CHUNK, 3))

    @precondition(lambda self: self.map.exists())
    @rule(length=st.integers(0, 200))
    def the_map_is_truncated(self, length: int) -> None:
        if length < self.map.stat().st_size:
            os.truncate(self.map, length)
            self.damaged = {0, 1, 2}

    @precondition(lambda self: self.arrived() or self.map.exists())
    @rule()
    def the_map_promises_everything(self) -> None:
        with self.map.open("r+b") as file:
            before = self.arrived()
            if os.fstat(file.fileno()).st_size > 136:
                file.seek(128)
                file.write(bytes([0b111]))
                self.damaged |= {0, 1, 2} - before

    @precondition(lambda self: not self.target.exists())
    @rule(
        fault=FAULTS,
        number=CHUNKS,
        by=st.sampled_from(["tag", "tag", "digests", "digests", "other digests"]),
        stop_at=st.sampled_from([None, 0, 1, 2]),
    )
    def fetch(self, fault: Fault | None, number: int, by: str, stop_at: int | None) -> None:
        begun = self.world.versions.index(self.version)
        if fault is not None and fault[0] == "wrong bytes" and by == "tag":
            by = "digests"  # else nobody could know
        expects = {"tag": None, "digests": begun, "other digests": 1 - begun}[by]
        promised = begun if expects is None else expects
        subject = ("tag" if expects is None else "digests", promised)
        kept = self.arrived() - self.damaged if subject == self.subject else set()
        self._arm(fault, number)
        self.store.asked.clear()
        stopped = []
        damaged = bool(self.damaged)

        def progress(done: int, total: int) -> None:
            # What an earlier damage left is looked through first, and nobody may look then.
            if not damaged:
                self._read_what_is_there(self.world.versions[promised])
            if stop_at is not None and done > stop_at * CHUNK:
                stopped.append(done)
                raise Enough

        try:
            fetched = sl.fetch(
                self.store.url,
                self.target,
                expected=None if expects is None else self.world.versions[expects].digest,
                limits=QUICK,
                progress=progress,
            )
        except Enough:
            assert stopped
            self._count("stopped")
        except (errors.FetchError, errors.IntegrityError) as error:
            self._failed(error, promised != begun or not passes(fault))
        else:
            assert not stopped
            self.complete = self.world.versions[promised]
            assert fetched.digest.chunks == self.complete.digest.chunks
            self._count("complete")
        finally:
            self.store.faults.clear()
        again = {first // CHUNK for first in self.store.ranges} & kept
        assert not again, f"chunks {again} were there and are asked for again"
        self._settled(subject)

    @precondition(lambda self: self.part.exists() and not self.target.exists())
    @rule(by=st.sampled_from(["tag", "digests"]))
    def what_began_is_ended(self, by: str) -> None:
        self.fetch(None, 0, by, None)
        assert self.complete is self.version

    @precondition(lambda self: not self.target.exists() and self.kills < MAX_KILLS)
    @rule(number=CHUNKS, after_bytes=st.sampled_from([0, 1, 1 << 20, CHUNK - 1]))
    def a_process_that_fetches_is_killed(self, number: int, after_bytes: int) -> None:
        self.kills += 1
        subject = ("tag", self.world.versions.index(self.version))
        kept = self.arrived() - self.damaged if subject == self.subject else set()
        fault = Kills(self.store, number, after_bytes)
        self.store.faults.append(fault)
        self.store.asked.clear()
        command = [sys.executable, "-c", CHILD, self.store.url, str(self.target)]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
            fault.child = child
            child.communicate(b"go\n", timeout=60)
        self.store.faults.clear()
        again = {first // CHUNK for first in self.store.ranges} & kept
        assert not again, f"chunks {again} were there and are asked for again"
        if number in kept:
            assert child.returncode == 0
            self.complete = self.version
            self._count("not killed")
        else:
            assert child.returncode == -signal.SIGKILL
            assert not self.target.exists()
            self._count("killed")
        self._settled(subject)

    # --- what the rules share -------------------------------------------------------------------

    def _arm(self, fault: Fault | None, number: int) -> None:
        match fault:
            case ("status", code):
                self.store.faults.append(status(code, times=3 if code in PASSING else 10**9))
            case ("breaks off", times):
                self.store.faults.append(breaks_off(self.store, times))
            case ("wrong bytes", times):
                self.store.faults.append(wrong_bytes(self.store, number, times))
            case ("replaced", _):
                other = self.world.versions[1 - self.world.versions.index(self.version)]
                self.store.faults.append(replaces(self.store, number, other))

    def _settled(self, subject: tuple[str, int]) -> None:
        """After a fetch the part, if there is one, is of its subject and free of damage."""
        self.subject = subject if self.map.exists() else None
        self.damaged = set()

    def _read_what_is_there(self, promised: Version) -> None:
        """An arriving reader sees the tensors whose chunks are there, and the right bytes."""
        there = self.arrived()
        if 0 not in there or not self.part.exists():
            return
        with sl.open_arriving(self.target, patience_s=1) as reader:
            for name, data in promised.tensors.items():
                info = reader.info(name)
                last = (info.offset_bytes + info.size_bytes - 1) // CHUNK
                if set(range(info.offset_bytes // CHUNK, last + 1)) <= there:
                    assert reader.numpy(name).tobytes() == data

    def _failed(self, error: Exception, reason: bool) -> None:
        assert reason, f"nothing was a reason for {error!r}"
        self._count(type(error).__name__)

    def _count(self, outcome: str) -> None:
        self.world.outcomes[outcome] = self.world.outcomes.get(outcome, 0) + 1

    # --- what always holds ----------------------------------------------------------------------

    @invariant()
    def a_file_under_its_name_is_whole_and_right(self) -> None:
        assert self.target.exists() == (self.complete is not None)
        if self.complete is not None:
            assert self.target.read_bytes() == self.complete.body

    @invariant()
    def nothing_else_is_left(self) -> None:
        found = {path.name for path in self.directory.iterdir()}
        allowed = {NAME} if self.complete else {self.part.name, self.map.name}
        assert found <= allowed

    @invariant()
    def what_the_map_shows_is_there_and_of_one_object(self) -> None:
        if self.subject is None or not self.part.exists():
            return
        version = self._subject_version()
        with self.part.open("rb") as file:
            for chunk in self.arrived() - self.damaged:
                file.seek(chunk * CHUNK)
                assert file.read(CHUNK) == version.chunk(chunk)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    versions = [Version.make(seed, tmp_path) for seed in (0, 1)]
    with served(ObjectStore(b"")) as store:
        yield World(store, versions)


def test_whatever_happens_nothing_wrong_is_ever_whole(world: World, disk: Path) -> None:
    repeatable = settings.default is not None and settings.default.derandomize
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        lambda: Fetches(world, disk),
        settings=settings(
            max_examples=EXAMPLES if repeatable else SEARCHED_EXAMPLES,
            stateful_step_count=12,
            deadline=None,
        ),
    )
    # A model that never gets anywhere would hold as well.
    assert {"complete", "stopped", "killed"} <= world.outcomes.keys(), world.outcomes
    assert len(world.outcomes) >= 5, world.outcomes


def test_the_two_objects_differ_in_every_chunk(world: World) -> None:
    first, second = (version.digest.chunks for version in world.versions)
    assert len(first) == len(second) == 3
    assert all(one != other for one, other in zip(first, second, strict=True))
    assert np.frombuffer(world.versions[0].tensors["a"], np.uint8).size == LENGTHS["a"]
