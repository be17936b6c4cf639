"""Where a server and a client meet: on loopback, or at the ends of a link of a given rate."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

SHAPED_GBIT_PER_S = 10
# What tc(8) may let through at once: at this rate some ms of it. With less, a virtual machine that
# is not scheduled for a moment loses that moment's share of the link for good.
BURST_BYTES = 16 << 20
LATENCY_MS = 50  # a queue of so much time in front of the link, then packets are dropped


class NoLinkError(Exception):
    """This machine does not let us make network namespaces; the message says why."""


@dataclass(frozen=True, slots=True)
class Link:
    """What to put before a command so that it runs at one end, and the server's address."""

    name: str
    at_server: tuple[str, ...]
    at_client: tuple[str, ...]
    address: str


LOOPBACK = Link("loopback", (), (), "127.0.0.1")


@contextmanager
def shaped(gbit_per_s: int = SHAPED_GBIT_PER_S) -> Iterator[Link]:
    """Two network namespaces, joined by a pair of devices that pass so much in each direction.

    Raises NoLinkError.
    """
    if os.geteuid() or not shutil.which("ip") or not shutil.which("tc"):
        raise NoLinkError("a shaped link takes root, and iproute2's `ip` and `tc`")
    server, client = (f"stoker-bench-{end}-{os.getpid()}" for end in ("s", "c"))
    devices = {server: "stoker0", client: "stoker1"}
    addresses = {server: "10.111.7.1", client: "10.111.7.2"}
    with ExitStack() as undo:
        for namespace in devices:
            _run("ip", "netns", "add", namespace)
            undo.callback(_run, "ip", "netns", "del", namespace)
        _run(
            *("ip", "link", "add", devices[server], "netns", server, "type", "veth"),
            *("peer", "name", devices[client], "netns", client),
        )
        for namespace, device in devices.items():
            _run("ip", "-n", namespace, "addr", "add", f"{addresses[namespace]}/30", "dev", device)
            _run("ip", "-n", namespace, "link", "set", "lo", "up")
            _run("ip", "-n", namespace, "link", "set", device, "up")
            _run(
                *("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf"),
                *("rate", f"{gbit_per_s}gbit", "burst", str(BURST_BYTES)),
                *("latency", f"{LATENCY_MS}ms"),
            )
        yield Link(
            f"{gbit_per_s} Gbit/s",
            ("ip", "netns", "exec", server),
            ("ip", "netns", "exec", client),
            addresses[server],
        )


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoLinkError(f"{' '.join(command)}: {done.stderr.strip()}")
