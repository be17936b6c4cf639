"""A filter of system calls (seccomp(2)) for a process that reads one file and writes another."""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

# <linux/audit.h>, and from <asm/unistd.h> of each architecture the number of seccomp itself, and of
# what neither reading, computing nor writing to an open descriptor needs. A new thread counts as a
# process.
X86_64 = (0xC000_003E, 317, {
    "bind": 49, "chmod": 90, "chown": 92, "clone": 56, "clone3": 435, "connect": 42, "execve": 59,
    "execveat": 322, "fchmod": 91, "fchmodat": 268, "fchmodat2": 452, "fchown": 93,
    "fchownat": 260, "fork": 57, "fremovexattr": 199, "fsetxattr": 190, "futimesat": 261,
    "io_uring_setup": 425, "kill": 62, "lchown": 94, "lremovexattr": 198, "lsetxattr": 189,
    "pidfd_getfd": 438, "pidfd_open": 434, "pidfd_send_signal": 424, "process_vm_readv": 310,
    "process_vm_writev": 311, "ptrace": 101, "removexattr": 197, "removexattrat": 466,
    "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "setxattr": 188, "setxattrat": 463,
    "socket": 41, "socketpair": 53, "tgkill": 234, "tkill": 200, "utime": 132, "utimensat": 280,
    "utimes": 235, "vfork": 58,
})  # fmt: skip
AARCH64 = (0xC000_00B7, 277, {
    "bind": 200, "clone": 220, "clone3": 435, "connect": 203, "execve": 221, "execveat": 281,
    "fchmod": 52, "fchmodat": 53, "fchmodat2": 452, "fchown": 55, "fchownat": 54,
    "fremovexattr": 16, "fsetxattr": 7, "io_uring_setup": 425, "kill": 129, "lremovexattr": 15,
    "lsetxattr": 6, "pidfd_getfd": 438, "pidfd_open": 434, "pidfd_send_signal": 424,
    "process_vm_readv": 270, "process_vm_writev": 271, "ptrace": 117, "removexattr": 14,
    "removexattrat": 466, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240, "setxattr": 5,
    "setxattrat": 463, "socket": 198, "socketpair": 199, "tgkill": 131, "tkill": 130,
    "utimensat": 88,
})  # fmt: skip
ARCHITECTURES = {"x86_64": X86_64, "aarch64": AARCH64}
# Numbers of x86-64's other ABI, by which every call could be made a second way.
X32_FIRST = 0x4000_0000

# <linux/seccomp.h>, <linux/bpf_common.h>
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC = 1, 1
ALLOW, REFUSE, KILL = 0x7FFF_0000, 0x0005_0000 | errno.EPERM, 0x8000_0000
LOAD_WORD, RETURN, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST = 0x20, 0x06, 0x15, 0x35
INSTRUCTION, INSTRUCTION_BYTES = "HBBI", 8
NUMBER_OFFSET, ARCHITECTURE_OFFSET = 0, 4  # in struct seccomp_data


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def forbid_system_calls() -> bool:
    """Make the kernel refuse (EPERM) what is named above, to every thread and for good.

    False where this processor is not known or the kernel has no filters. Needs `no_new_privs`.
    """
    known = ARCHITECTURES.get(platform.machine())
    if known is None:
        return False
    architecture, seccomp, forbidden = known
    program = _instructions(architecture, sorted(forbidden.values()))
    libc = ctypes.CDLL(None, use_errno=True)
    done: int = libc.syscall(
        ctypes.c_long(seccomp),
        ctypes.c_uint(SECCOMP_SET_MODE_FILTER),
        ctypes.c_uint(SECCOMP_FILTER_FLAG_TSYNC),
        ctypes.byref(_Program(len(program) // INSTRUCTION_BYTES, program)),
    )
    return done == 0


def _instructions(architecture: int, numbers: list[int]) -> bytes:
    """The filter: another architecture kills, a forbidden number jumps to the last instruction."""
    steps = [
        (LOAD_WORD, 0, 0, ARCHITECTURE_OFFSET),
        (JUMP_IF_EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL),
        (LOAD_WORD, 0, 0, NUMBER_OFFSET),
        (JUMP_IF_AT_LEAST, len(numbers) + 1, 0, X32_FIRST),
    ]
    left = range(len(numbers), 0, -1)
    steps += [
        (JUMP_IF_EQUAL, ahead, 0, number) for ahead, number in zip(left, numbers, strict=True)
    ]
    steps += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE)]
    return b"".join(struct.pack(INSTRUCTION, *step) for step in steps)
