"""Writes a safetensors checkpoint in a peer's own format; runs in that peer's environment.

`python -m tests.bench.loader.formats FORMAT SOURCE DESTINATION`: SOURCE is the safetensors file,
DESTINATION a folder that exists.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.loader.safetensors_file import read_bits

FILES = {
    "safetensors": "model.safetensors",
    "torch": "pytorch_model.bin",
    "tensorizer": "model.tensors",
    "tensorflow": "model.ckpt",  # the prefix of an index and of data files
}
# TensorFlow holds what it saves in memory: that much at a time, then the parts are made one.
PART_BYTES = 1 << 30


def torch_tensors(source: Path) -> dict[str, Any]:
    """Tensors over the mapped file. Each has a storage of just its own bytes, so that what is
    saved is what a user would save."""
    import torch

    return {name: torch.from_numpy(bits).view(torch.bfloat16) for name, bits in read_bits(source)}


def write_torch(source: Path, destination: Path) -> None:
    import torch

    torch.save(torch_tensors(source), destination / FILES["torch"])


def write_tensorizer(source: Path, destination: Path) -> None:
    from tensorizer import TensorSerializer

    serializer = TensorSerializer(str(destination / FILES["tensorizer"]))
    serializer.write_state_dict(torch_tensors(source))
    serializer.close()


def write_tensorflow(source: Path, destination: Path) -> None:
    import tensorflow as tf

    parts: list[list[tuple[str, Any]]] = [[]]
    part_bytes = 0
    for name, bits in read_bits(source):
        if part_bytes >= PART_BYTES:
            parts.append([])
            part_bytes = 0
        parts[-1].append((name, bits))
        part_bytes += bits.nbytes
    prefixes = []
    for number, part in enumerate(parts):
        prefixes.append(str(destination / f"part-{number}"))
        names = [name for name, _ in part]
        tensors = [tf.bitcast(tf.constant(bits), tf.bfloat16) for _, bits in part]
        tf.raw_ops.SaveV2(
            prefix=prefixes[-1],
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            tensors=tensors,
        )
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=prefixes, destination_prefix=str(destination / FILES["tensorflow"])
    )


WRITERS: dict[str, Callable[[Path, Path], None]] = {
    "torch": write_torch,
    "tensorizer": write_tensorizer,
    "tensorflow": write_tensorflow,
}


def main() -> None:
    name, source, destination = sys.argv[1:]
    WRITERS[name](Path(source), Path(destination))


if __name__ == "__main__":
    main()
