"""The package without torch: in a process that cannot import it here, by its wheel elsewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("without_torch.py")


def test_numpy_and_buffers_are_enough(disk: Path) -> None:
    """`make check-wheel` runs the same program where only the wheel and numpy are installed."""
    command = [sys.executable, str(PROGRAM), str(disk), "--blocked"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
