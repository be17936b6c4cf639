"""A domain of Landlock (landlock(7)) for a process that writes to one folder, or to none.

It needs neither a namespace nor a privilege, so it also holds in containers that forbid those.
"""

from __future__ import annotations

import ctypes
import os

# The same on every architecture.
SYS_CREATE_RULESET, SYS_ADD_RULE, SYS_RESTRICT_SELF = 444, 445, 446
# <linux/landlock.h>
CREATE_RULESET_VERSION, RULE_PATH_BENEATH = 1, 1
WRITE_FILE, REMOVE_DIR, REMOVE_FILE = 1 << 1, 1 << 4, 1 << 5
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK = 1 << 6, 1 << 7, 1 << 8, 1 << 9
MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = 1 << 10, 1 << 11, 1 << 12
REFER, TRUNCATE = 1 << 13, 1 << 14
# Before the third version nothing kept anybody from cutting a file short.
FIRST_VERSION = 3
# What a folder may be given; whoever made the process looks at what it left there.
INSIDE = WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM | TRUNCATE
WRITING = INSIDE | REFER | MAKE_CHAR | MAKE_SOCK | MAKE_FIFO | MAKE_BLOCK


class _Ruleset(ctypes.Structure):
    _fields_ = (("handled_access_fs", ctypes.c_uint64),)


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def forbid_writes(writable: str | None = None) -> bool:
    """Make the kernel refuse (EACCES) to make, remove, rename, cut or open files for writing.

    In `writable` files, folders and symbolic links may still be; what is open already stays as it
    was. As every domain, it also keeps this process out of the memory and the environment of all
    that are not in it. For this thread and what it starts, for good. False where the kernel has no
    Landlock of version 3 (Linux 6.2), or has it switched off. Needs `no_new_privs`.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = _call(libc, SYS_CREATE_RULESET, None, 0, CREATE_RULESET_VERSION)
    if version < FIRST_VERSION:
        return False
    wanted = _Ruleset(WRITING)
    rules = _call(libc, SYS_CREATE_RULESET, ctypes.byref(wanted), ctypes.sizeof(wanted), 0)
    if rules < 0:
        return False
    try:
        if writable is not None and not _allow(libc, rules, writable):
            return False
        return _call(libc, SYS_RESTRICT_SELF, rules, 0) == 0
    finally:
        os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, folder: str) -> bool:
    opened = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        rule = _PathBeneath(INSIDE, opened)
        return _call(libc, SYS_ADD_RULE, rules, RULE_PATH_BENEATH, ctypes.byref(rule), 0) == 0
    finally:
        os.close(opened)


def _call(libc: ctypes.CDLL, number: int, *arguments: object) -> int:
    # An int would leave half of a register as it was.
    words = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    done: int = libc.syscall(ctypes.c_long(number), *words)
    return done
