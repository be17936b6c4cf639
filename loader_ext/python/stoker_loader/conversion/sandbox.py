"""The walls that a child process puts around itself before it reads what nobody vouches for.

Each wall stands alone, and each says whether it holds:

- `namespaces`: no network but a loopback that is down, and every mount read-only. What the child
  writes goes through descriptors that it was given, or to one folder that stays writable. Held by
  the kernel, where it allows them.
- `privileges`: no capability, and none to be had from a set-uid program.
- `landlock`: nothing made, removed, cut short or opened to write but in that folder, and no other
  process's memory or environment by way of /proc (`landlock.py`). Held by the kernel from Linux
  6.2 on, in containers too.
- `system calls`: no sockets, no processes, no program, no other process's memory, no change of
  a file's mode, owner, times or attributes, whoever asks. Held by the kernel (seccomp,
  `system_calls.py`) on processors whose numbers of these calls are known.
- `limits`: address space, processor time, length of files, open files, processes, core dumps.
- `audit hook`: no sockets, processes, files to write (but new ones in that folder), changes to the
  file system or foreign functions from Python, which is all that a pickle can call. It cannot be
  taken out again (PEP 578), but holds only while the interpreter is whole.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from stoker_loader.conversion.limits import Limits

# <sched.h>, <linux/mount.h>, <sys/prctl.h>, <linux/capability.h>
CLONE_NEWNS, CLONE_NEWIPC = 0x0002_0000, 0x0800_0000
CLONE_NEWUSER, CLONE_NEWNET = 0x1000_0000, 0x4000_0000
SYS_MOUNT_SETATTR = 442  # the same on every architecture
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
MOUNT_ATTR_RDONLY, MS_BIND, MS_PRIVATE = 1, 1 << 12, 1 << 18
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
CAPABILITY_VERSION_3 = 0x2008_0522

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = (
    "ctypes.", "fcntl.", "ftplib.", "http.", "os.", "pty.", "resource.", "shutil.", "signal.",
    "smtplib.", "socket.", "sqlite3.", "subprocess.", "syslog.", "tempfile.", "urllib.",
    "webbrowser.",
)  # fmt: skip
READING = frozenset({"os.listdir", "os.scandir"})


class WallTouchedError(BaseException):
    """Something tried what the audit hook forbids. No `except Exception` on the way hides it."""


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def leave_the_world(writable: str | None = None) -> bool:
    """Enter namespaces without a network, and with nothing writable but descriptors and a folder.

    False where the kernel or a container forbids it. Must come before the first thread.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    namespaces = CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWIPC
    # With a user namespace anyone may; without, only who is privileged where those are off.
    if libc.unshare(CLONE_NEWUSER | namespaces) != 0 and libc.unshare(namespaces) != 0:
        return False
    # Private first: no mount of this process may show up in the world that it left.
    if not _set_mounts(libc, b"/", _MountAttributes(propagation=MS_PRIVATE)):
        return False
    folder = None if writable is None else os.fsencode(writable)
    if folder is not None and libc.mount(folder, folder, None, MS_BIND, None) != 0:
        return False
    if not _set_mounts(libc, b"/", _MountAttributes(set=MOUNT_ATTR_RDONLY)):
        return False
    return folder is None or _set_mounts(libc, folder, _MountAttributes(clear=MOUNT_ATTR_RDONLY))


def give_up_privileges(parent: int) -> bool:
    """Drop every capability for good, and die with the process `parent`.

    False if the kernel refused. Raises SystemExit if the parent is gone already.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header = _CapabilityHeader(version=CAPABILITY_VERSION_3, pid=0)
    nothing = (ctypes.c_uint32 * 6)()
    held: bool = (
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        and libc.capset(ctypes.byref(header), ctypes.byref(nothing)) == 0
    )
    # Last: a change of credentials would clear it.
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(1)
    return held


def limit(limits: Limits) -> None:
    """Bound what this process may use from here on; its address space beside what it has now."""
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    mapped_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * page_bytes
    bounds = {
        resource.RLIMIT_AS: mapped_bytes + limits.address_space_bytes,
        resource.RLIMIT_CPU: limits.cpu_seconds,
        resource.RLIMIT_FSIZE: limits.output_bytes,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: limits.processes,
    }
    for which, bound in bounds.items():
        hard = resource.getrlimit(which)[1]
        wanted = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(which, (wanted, wanted))


def forbid_effects(writable: str | None = None) -> None:
    """Make every effect that Python code could have raise WallTouchedError, from here on.

    Only files and folders within `writable` may still be made.
    """
    # Names of this call alone: nobody switches the hook off by giving the module's new values.
    forbidden, reading, writing, touched = FORBIDDEN, READING, WRITING, WallTouchedError
    starts_with, is_a, integer, text = str.startswith, isinstance, int, str
    absolute, here = os.path.abspath, -1
    within = None if writable is None else writable.rstrip("/") + "/"

    def is_inside(path: Any) -> bool:
        # No link leads out of the folder: making one is forbidden.
        return within is not None and is_a(path, text) and starts_with(absolute(path) + "/", within)

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            flags = arguments[2]
            if is_a(flags, integer) and flags & writing and not is_inside(arguments[0]):
                raise touched(f"opening {arguments[0]!r} to write")
        elif event == "os.mkdir" and arguments[2] == here and is_inside(arguments[0]):
            pass
        elif starts_with(event, forbidden) and event not in reading:
            raise touched(event)

    sys.addaudithook(refuse)


def _set_mounts(libc: ctypes.CDLL, root: bytes, wanted: _MountAttributes) -> bool:
    """Change a mount and all below it, as mount_setattr(2) does."""
    done: int = libc.syscall(
        ctypes.c_long(SYS_MOUNT_SETATTR),
        ctypes.c_int(AT_FDCWD),
        root,
        ctypes.c_uint(AT_RECURSIVE),
        ctypes.byref(wanted),
        ctypes.c_size_t(ctypes.sizeof(wanted)),
    )
    return done == 0
