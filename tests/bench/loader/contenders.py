"""Who is measured: each with its package, its format, and the environment that it runs in."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

OURS = "stoker"
FAILURES_FILE = "failures.json"  # what did not install, and why


@dataclass(frozen=True, slots=True)
class Contender:
    """`environment` is a folder below the peers' one; None is the environment of the harness.
    `large` ones are measured on the largest checkpoint too: those that read safetensors, and of
    the others the fastest, so that neither the disk nor the clock runs out."""

    name: str
    requirement: str | None
    format: str
    environment: str | None = "torch"
    large: bool = True


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender(OURS, None, "safetensors", environment=None),
        Contender("safetensors", "safetensors", "safetensors"),
        Contender("safetensors_pread", "safetensors", "safetensors", large=False),
        Contender("runai_streamer", "runai-model-streamer", "safetensors"),
        Contender("fastsafetensors", "fastsafetensors", "safetensors"),
        Contender("torch_mmap", "torch", "torch"),
        Contender("torch_load", "torch", "torch", large=False),
        Contender("tensorizer", "tensorizer", "tensorizer", large=False),
        Contender("tensorflow", "tensorflow-cpu", "tensorflow", "tensorflow", large=False),
    )
}


def requirements() -> dict[str, tuple[str, ...]]:
    """What each environment needs, in the order in which it is installed."""
    wanted: dict[str, dict[str, None]] = {}
    for contender in CONTENDERS.values():
        if contender.environment and contender.requirement:
            wanted.setdefault(contender.environment, {})[contender.requirement] = None
    return {environment: tuple(names) for environment, names in wanted.items()}


@dataclass(frozen=True, slots=True)
class Peers:
    """The environments below `folder`, and what is known to be missing in them."""

    folder: Path
    failures: dict[str, str]  # requirement -> why it is not installed

    @staticmethod
    def at(folder: Path) -> Peers:
        """Raises FileNotFoundError where nothing was ever installed."""
        return Peers(folder, json.loads((folder / FAILURES_FILE).read_text()))

    def python(self, environment: str) -> Path:
        return self.folder / environment / "bin" / "python"

    def versions(self) -> dict[str, str]:
        """The version of every package that is installed."""
        found: dict[str, str] = {}
        for environment, names in requirements().items():
            for name in names:
                if name not in self.failures:
                    ask = f"import importlib.metadata as m; print(m.version({name!r}))"
                    command = [str(self.python(environment)), "-c", ask]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    found[name] = done.stdout.strip()
        return found

    def missing(self, contender: Contender) -> str | None:
        """Why a contender cannot even be started."""
        if contender.requirement is None:
            return None
        return self.failures.get(contender.requirement)


def formats(contenders: Iterable[Contender]) -> dict[str, Contender]:
    """Every format with a contender whose environment can write it."""
    found: dict[str, Contender] = {}
    for contender in contenders:
        found.setdefault(contender.format, contender)
    return found
