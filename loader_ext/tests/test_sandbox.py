"""Each wall alone, tried from inside by code that a pickle is never allowed to run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

NAMESPACES = """
from stoker_loader.conversion import sandbox
assert sandbox.leave_the_world()
"""
PRIVILEGES = """
import os
from stoker_loader.conversion import sandbox
assert sandbox.give_up_privileges(os.getppid())
"""
AUDIT = """
import os, socket, subprocess, ctypes, shutil, pathlib, resource, tempfile
from stoker_loader.conversion import sandbox
sandbox.forbid_effects()
"""
LIMITS = """
import os
from stoker_loader.conversion import sandbox
from stoker_loader.conversion.limits import Limits
sandbox.limit(Limits(64 << 20, 1 << 20, 1, 16, 0))
"""


def attempt(walls: str, action: str, *passed: int) -> subprocess.CompletedProcess[str]:
    """Run an action behind walls; it prints `done` if they let it."""
    code = f"{walls}\n{action}\nprint('done')"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, pass_fds=passed, timeout=60
    )


@pytest.fixture(scope="module")
def namespaces() -> None:
    if attempt(NAMESPACES, "").returncode != 0:
        pytest.skip("this kernel or container allows no namespaces")


def raw_connect(address: str) -> str:
    """Connects by the system call alone: what code could do that is past Python's own walls."""
    return f"""
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
s = libc.socket(2, 1, 0)
host, port = {address!r}.split(":")
where = struct.pack("=HH4s8x", 2, int.from_bytes(int(port).to_bytes(2, "big"), "little"),
                    bytes(map(int, host.split("."))))
if libc.connect(s, where, len(where)):
    raise OSError(ctypes.get_errno(), "connect")
"""


def raw_call(name: str, arguments: str) -> str:
    """Makes a system call by its number, as code past Python's own walls could."""
    return f"""
import ctypes, os, platform
from stoker_loader.conversion.system_calls import ARCHITECTURES
number = ARCHITECTURES[platform.machine()][2][{name!r}]
words = map(ctypes.c_long, (number, {arguments}))  # an int leaves half of one as it was
if ctypes.CDLL(None, use_errno=True).syscall(*words) < 0:
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
"""


@pytest.mark.usefixtures("namespaces")
def test_without_a_network_nothing_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        action = raw_connect(f"127.0.0.1:{server.getsockname()[1]}")
        refused = attempt(NAMESPACES, action)
        assert "Network is unreachable" in refused.stderr or "[Errno 101]" in refused.stderr
        with pytest.raises(BlockingIOError):
            server.accept()
        assert attempt("", action).stdout == "done\n"  # without the wall it would
        server.accept()[0].close()


@pytest.mark.usefixtures("namespaces")
def test_everything_is_read_only_but_what_was_passed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for action in (
        f"open({str(tmp_path / 'new')!r}, 'w')",
        f"open({str(victim)!r}, 'r+')",
        f"import os; os.unlink({str(victim)!r})",
        f"import os; os.rename({str(victim)!r}, {str(tmp_path / 'gone')!r})",
        f"import os; os.chmod({str(victim)!r}, 0)",
        f"import os; os.truncate({str(victim)!r}, 0)",
        f"import os; os.mkdir({str(tmp_path / 'new')!r})",
        "open('/dev/shm/stoker-test', 'w')",
    ):
        assert "Read-only file system" in attempt(NAMESPACES, action).stderr, action
    assert (victim.read_text(), [p.name for p in tmp_path.iterdir()]) == ("precious", ["victim"])
    with victim.open("r+b") as passed:
        written = attempt(NAMESPACES, f"import os; os.write({passed.fileno()}, b'written')",
                          passed.fileno())  # fmt: skip
    assert written.stdout == "done\n"
    assert victim.read_text() == "writtens"


@pytest.mark.usefixtures("namespaces")
def test_one_folder_can_stay_writable(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    walls = NAMESPACES.replace("()", f"({str(inside)!r})") + PRIVILEGES
    assert attempt(walls, f"open({str(inside / 'new')!r}, 'w')").stdout == "done\n"
    for path in (tmp_path / "new", inside / ".." / "new"):
        assert "Read-only file system" in attempt(walls, f"open({str(path)!r}, 'w')").stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["inside", "new"]
    assert (inside / "new").exists()


@pytest.mark.usefixtures("namespaces")
def test_privileges_do_not_come_back(tmp_path: Path) -> None:
    behind = NAMESPACES + PRIVILEGES
    remount = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(None, b"/", None, 32, None):  # MS_REMOUNT: writable again
    raise OSError(ctypes.get_errno(), "mount")
"""
    assert "[Errno 1]" in attempt(behind, remount).stderr
    status = "print(open('/proc/self/status').read())"
    facts = dict(
        line.split(":\t") for line in attempt(behind, status).stdout.splitlines() if ":\t" in line
    )
    assert int(facts["CapEff"], 16) == int(facts["CapPrm"], 16) == 0
    assert facts["NoNewPrivs"] == "1"


CALLS = """
import os
from stoker_loader.conversion import sandbox
from stoker_loader.conversion.system_calls import forbid_system_calls
sandbox.give_up_privileges(os.getppid())
if not forbid_system_calls():
    raise SystemExit("no filter")
"""


@pytest.fixture(scope="module")
def system_calls() -> None:
    if attempt(CALLS, "").returncode != 0:
        pytest.skip("no filter of system calls for this processor, or not in this kernel")


@pytest.mark.usefixtures("system_calls")
@pytest.mark.parametrize(
    "action",
    [
        "import socket; socket.socket()",
        "import socket; socket.socketpair()",
        "os.fork()",
        "os.execv('/bin/true', ['true'])",
        "import subprocess; subprocess.run(['true'])",
        "os.kill(os.getppid(), 0)",
        "import threading; threading.Thread(target=print).start()",
        "import signal; os.pidfd_open(os.getppid())",
        raw_call("tkill", "os.getppid(), 0"),
        raw_call("tgkill", "os.getppid(), os.getppid(), 0"),
        raw_call("process_vm_readv", "os.getppid(), 0, 0, 0, 0, 0"),
        "os.chmod('.', os.stat('.').st_mode)",
        "os.chown('.', -1, -1)",
        "os.utime('.')",
    ],
    ids=[
        "socket",
        "socketpair",
        "fork",
        "exec",
        "process",
        "kill",
        "thread",
        "pidfd",
        "tkill",
        "tgkill",
        "memory",
        "mode",
        "owner",
        "times",
    ],
)
def test_the_kernel_refuses_system_calls(action: str) -> None:
    refused = attempt(CALLS, action)
    assert refused.returncode == 1
    assert "Operation not permitted" in refused.stderr or "can't start new" in refused.stderr
    assert attempt("import os", action).returncode == 0


@pytest.mark.usefixtures("system_calls")
def test_the_kernel_refuses_a_raw_connection_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        action = raw_connect(f"127.0.0.1:{server.getsockname()[1]}")
        assert "connect" in attempt(CALLS, action).stderr
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.usefixtures("system_calls")
def test_the_kernel_lets_read_and_compute(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("read me")
    action = f"assert open({str(tmp_path / 'x')!r}).read(); import mmap; mmap.mmap(-1, 4096)"
    assert attempt(CALLS, action).stdout == "done\n"


LANDLOCK = """
import os
from stoker_loader.conversion import sandbox
from stoker_loader.conversion.landlock import forbid_writes
sandbox.give_up_privileges(os.getppid())
if not forbid_writes():
    raise SystemExit("no Landlock")
"""


@pytest.fixture(scope="module")
def landlock() -> None:
    if attempt(LANDLOCK, "").returncode != 0:
        pytest.skip("this kernel has no Landlock of version 3, or has it switched off")


@pytest.mark.usefixtures("landlock")
@pytest.mark.parametrize(
    "action",
    [
        "open({new!r}, 'w')",
        "open({victim!r}, 'r+')",
        "os.truncate({victim!r}, 0)",
        "os.unlink({victim!r})",
        "os.rename({victim!r}, {new!r})",
        "os.link({victim!r}, {new!r})",
        "os.symlink({victim!r}, {new!r})",
        "os.mkdir({new!r})",
        "os.mkfifo({new!r})",
    ],
)
def test_landlock_lets_nothing_be_written(tmp_path: Path, action: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    action = action.format(victim=str(victim), new=str(tmp_path / "new"))
    assert "Permission denied" in attempt(LANDLOCK, action).stderr
    assert (victim.read_text(), [p.name for p in tmp_path.iterdir()]) == ("precious", ["victim"])
    assert attempt("import os", action).stdout == "done\n"  # without the wall it would


@pytest.mark.usefixtures("landlock")
def test_landlock_leaves_a_folder_and_what_is_open(tmp_path: Path) -> None:
    inside, victim = tmp_path / "inside", tmp_path / "victim"
    inside.mkdir()
    victim.write_text("precious")
    walls = LANDLOCK.replace("forbid_writes()", f"forbid_writes({str(inside)!r})")
    name = str(inside / "new")
    ways = f"open({name!r}, 'w').write('x'); os.rename({name!r}, {name + 'er'!r})"
    assert attempt(walls, ways + f"; os.mkdir({str(inside / 'folder')!r})").stdout == "done\n"
    assert sorted(path.name for path in inside.iterdir()) == ["folder", "newer"]
    for action in (
        f"open({str(inside / '..' / 'new')!r}, 'w')",
        f"os.rename({name + 'er'!r}, {str(tmp_path / 'out')!r})",
        f"os.mkfifo({name!r})",
    ):
        assert "[Errno 13]" in (failed := attempt(walls, action).stderr) or "[Errno 18]" in failed
    with victim.open("r+b") as passed:
        number = passed.fileno()
        written = attempt(walls, f"os.write({number}, b'written'); os.ftruncate({number}, 7)",
                          number)  # fmt: skip
    assert written.stdout == "done\n"
    assert victim.read_text() == "written"


@pytest.mark.usefixtures("landlock")
@pytest.mark.parametrize("what", ["environ", "mem", "fd/0"])
def test_landlock_keeps_out_of_other_processes(what: str) -> None:
    """Of a process that anybody may read who has the same user, as a parent of the child."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        action = f"os.open('/proc/{other.pid}/{what}', os.O_RDONLY)"
        refused = attempt(LANDLOCK, action)
        let = attempt("import os", action)
        assert other.stdin is not None
        other.stdin.close()
    assert "Permission denied" in refused.stderr
    assert let.stdout == "done\n"


EFFECTS = {
    "socket": "socket.socket()",
    "socketpair": "socket.socketpair()",
    "name look-up": "socket.getaddrinfo('localhost', 80)",
    "shell": "os.system('true')",
    "process": "subprocess.run(['true'])",
    "fork": "os.fork()",
    "exec": "os.execv('/bin/true', ['true'])",
    "spawn": "os.posix_spawn('/bin/true', ['true'], os.environ)",
    "write": "open('{path}', 'w')",
    "append": "open('{path}', 'a')",
    "os.open": "os.open('{path}', os.O_CREAT | os.O_RDWR)",
    "pathlib": "pathlib.Path('{path}').touch()",
    "mkdir": "os.mkdir('{path}')",
    "remove": "os.remove('{victim}')",
    "rename": "os.rename('{victim}', '{path}')",
    "link": "os.symlink('{victim}', '{path}')",
    "chmod": "os.chmod('{victim}', 0)",
    "truncate": "os.truncate('{victim}', 0)",
    "rmtree": "shutil.rmtree('{folder}')",
    "kill": "os.kill(os.getppid(), 9)",
    "libc": "ctypes.CDLL(None)",
    "a function": "ctypes.pythonapi.Py_Exit",
    "limits": "resource.setrlimit(resource.RLIMIT_NOFILE, (99, 99))",
    "temporary": "tempfile.mkstemp()",
}


@pytest.mark.parametrize("action", EFFECTS.values(), ids=EFFECTS)
def test_the_audit_hook_refuses_effects(tmp_path: Path, action: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    words = {"path": tmp_path / "new", "victim": victim, "folder": tmp_path}
    refused = attempt(AUDIT, action.format(**words))
    assert refused.returncode == 1
    assert "WallTouchedError" in refused.stderr
    assert (victim.read_text(), [p.name for p in tmp_path.iterdir()]) == ("precious", ["victim"])
    caught = f"try:\n    {action.format(**words)}\nexcept Exception:\n    pass"
    assert "WallTouchedError" in attempt(AUDIT, caught).stderr


def test_the_audit_hook_lets_read_and_compute(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("read me")
    action = f"assert open({str(tmp_path / 'x')!r}).read(); os.listdir('/'); import json, decimal"
    assert attempt(AUDIT, action).stdout == "done\n"


@pytest.mark.parametrize(
    ("action", "is_let"),
    [
        ("open('{inside}/new', 'w')", True),
        ("os.makedirs('{inside}/a/b')", True),
        ("open('{inside}/../new', 'w')", False),
        ("open('{inside}beside', 'w')", False),
        ("os.mkdir('{inside}/../new')", False),
        ("os.mkdir('new', dir_fd=os.open('{outside}', os.O_RDONLY))", False),
        ("os.symlink('{outside}', '{inside}/link')", False),
        ("os.rename('{outside}/victim', '{inside}/victim')", False),
    ],
)
def test_the_audit_hook_lets_files_be_made_in_one_folder(
    tmp_path: Path, action: str, is_let: bool
) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "victim").write_text("precious")
    here = f"os.chdir({str(inside)!r})\nsandbox.forbid_effects({str(inside)!r})"
    walls = AUDIT.replace("sandbox.forbid_effects()", here)
    done = attempt(walls, action.format(inside=inside, outside=tmp_path))
    assert (done.stdout == "done\n") == is_let
    assert ("WallTouchedError" in done.stderr) != is_let
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inside", "victim"]


def test_memory_processor_time_and_files_are_bounded(tmp_path: Path) -> None:
    assert "MemoryError" in attempt(LIMITS, "bytearray(1 << 30)").stderr
    assert attempt(LIMITS, "bytearray(1 << 20)").stdout == "done\n"
    assert attempt(LIMITS, "while True: pass").returncode in (-9, -24)
    many = "files = [open('/dev/null') for _ in range(64)]"
    assert "Too many open files" in attempt(LIMITS, many).stderr
    large = f"open({str(tmp_path / 'x')!r}, 'wb').write(bytes(2 << 20))"
    assert "File too large" in attempt(LIMITS, large).stderr
    raised = "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))"
    assert "not allowed to raise" in attempt(PRIVILEGES + LIMITS, raised).stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="the kernel does not count the processes of root")
def test_there_are_no_more_processes() -> None:
    assert "BlockingIOError" in attempt(LIMITS, "os.fork()").stderr


def test_a_child_dies_with_its_parent() -> None:
    """The middle process is killed; the pipe closes only when its child is gone too."""
    child = f"{PRIVILEGES}\nprint('ready', flush=True)\nimport signal\nsignal.pause()"
    middle = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", middle], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.kill()
    assert process.stdout.read() == b""
    process.stdout.close()
    process.wait()


def test_a_child_whose_parent_is_gone_does_not_begin() -> None:
    code = "from stoker_loader.conversion import sandbox\nsandbox.give_up_privileges(2**22 + 1)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 1


def test_the_hook_is_not_switched_off_by_changing_names() -> None:
    action = "sandbox.FORBIDDEN = ()\nimport builtins\nbuiltins.isinstance = print\nos.system('')"
    assert "WallTouchedError" in attempt(AUDIT, action).stderr
