"""The package as others see it: its stub, its names, and that importing it is cheap."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import stoker_loader as sl

PACKAGE = Path(__file__).parents[1]


def test_the_stub_is_what_the_native_module_has(tmp_path: Path) -> None:
    # Alone, or the checker would read all of torch through the package.
    alone = tmp_path / "stoker_loader"
    alone.mkdir()
    (alone / "__init__.pyi").touch()
    shutil.copy(PACKAGE / "python" / "stoker_loader" / "_native.pyi", alone)
    command = [sys.executable, "-m", "mypy.stubtest", "stoker_loader._native"]
    # `__all__` is pyo3's own, and `__buffer__` has a name at runtime from Python 3.12 on only.
    allowed = PACKAGE / "tests" / "stub_allowlist.txt"
    command += ["--ignore-missing-stub", "--ignore-unused-allowlist", f"--allowlist={allowed}"]
    environment = os.environ | {"MYPYPATH": str(tmp_path)}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_public_name_is_there() -> None:
    assert all(getattr(sl, name) is not None for name in sl.__all__)
    assert sl.__all__ == sorted(sl.__all__)


def test_the_native_module_asks_for_neither_cuda_nor_torch() -> None:
    """Not even where both are installed: they are looked for when they are needed."""
    module = sys.modules["stoker_loader._native"].__file__
    assert module is not None
    asked = subprocess.run(["ldd", module], capture_output=True, text=True, check=True).stdout
    assert "libc.so" in asked
    assert not re.search("cuda|torch|c10|python", asked)
