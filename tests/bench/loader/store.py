"""The checkpoints on the disk that is measured, made once and kept between runs.

`<data>/<checkpoint>/<format>/` holds one checkpoint and nothing else. A folder appears by a rename
when it is whole.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.loader import shapes
from tests.bench.loader.contenders import Contender, Peers
from tests.bench.loader.formats import FILES
from tests.bench.loader.ours import digest_file, write_digest
from tests.bench.loader.processes import run_module
from tests.bench.loader.safetensors_file import write_random

SEED = 1
SMOLLM2 = "smollm2-135m-instruct"  # where `make models` puts it
REHEARSAL = "tiny"

CHECKPOINTS = {
    "smollm2": shapes.SMOLLM2_135M,
    "llama_1b": shapes.LLAMA_1B,
    "llama_3b": shapes.LLAMA_3B,
    "experts": shapes.EXPERTS,
    "few_experts": shapes.FEW_EXPERTS,
    "tiny": shapes.TINY,
}


@dataclass(frozen=True, slots=True)
class Store:
    """`models` is where the real SmolLM2 may be; without it one of its shape is made."""

    data: Path
    models: Path
    peers: Peers
    tell: Callable[[str], None]

    def ours(self, checkpoint: str) -> Path:
        """The safetensors file, with its digest beside it."""
        folder = self.data / checkpoint / "safetensors"
        file = folder / FILES["safetensors"]
        if not folder.exists():
            self.tell(f"making {checkpoint} ...")
            with self._making(folder) as made:
                self._write(checkpoint, made / file.name)
        if not digest_file(file).exists():
            write_digest(file)
        return file

    def file(self, checkpoint: str, contender: Contender) -> Path:
        """What `contender` is given to load. Raises MeasureFailedError."""
        source = self.ours(checkpoint)
        if contender.format == "safetensors":
            return source
        folder = self.data / checkpoint / contender.format
        if not folder.exists():
            self.tell(f"making {checkpoint} for {contender.name} ...")
            with self._making(folder) as made:
                self._convert(contender, source, made)
        return folder / FILES[contender.format]

    def _write(self, checkpoint: str, file: Path) -> None:
        real = self.models / SMOLLM2 / FILES["safetensors"]
        if checkpoint == "smollm2" and real.exists():
            shutil.copyfile(real, file)
        else:
            write_random(file, CHECKPOINTS[checkpoint].shapes(), SEED)

    def _convert(self, contender: Contender, source: Path, made: Path) -> None:
        assert contender.environment
        run_module(
            "tests.bench.loader.formats",
            *(contender.format, str(source), str(made)),
            python=self.peers.python(contender.environment),
        )

    @staticmethod
    def _making(folder: Path) -> _Making:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return _Making(folder)


class _Making:
    """A folder beside its destination: renamed when the block ends well, else removed."""

    def __init__(self, destination: Path) -> None:
        self._destination = destination
        self._folder = Path(tempfile.mkdtemp(prefix=".making-", dir=destination.parent))

    def __enter__(self) -> Path:
        return self._folder

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            os.sync()  # nothing of it is written back while something else is measured
            self._folder.rename(self._destination)
        else:
            shutil.rmtree(self._folder)
