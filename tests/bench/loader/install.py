"""Makes the peers' environments: `python -m tests.bench.loader.install FOLDER UV CONSTRAINTS`.

Each package is installed by itself, so that one which does not install takes no other with it;
which, and why, is written to `failures.json` in FOLDER.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.bench.loader.contenders import FAILURES_FILE, requirements
from tests.bench.loader.processes import reason

INSTALL_TIMEOUT_S = 900
# What the harness itself needs there.
COMMON = ("numpy",)


def main() -> None:
    folder, uv, constraints = sys.argv[1:]
    failures: dict[str, str] = {}
    for environment, names in requirements().items():
        home = Path(folder) / environment
        _run(uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(home))
        python = str(home / "bin" / "python")
        for name in (*COMMON, *names):
            _tell(f"installing {name} ...")
            command = (uv, "pip", "install", "--quiet", "--compile-bytecode")
            try:
                _run(*command, "--python", python, "--constraint", constraints, name)
            except subprocess.CalledProcessError as error:
                failures[name] = reason(error.stderr)
                _tell(f"  it does not install: {failures[name]}")
    (Path(folder) / FAILURES_FILE).write_text(json.dumps(failures, indent=1) + "\n")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
