"""How each contender loads a checkpoint, as its own documentation says; run by `child`.

A maker imports what the loader needs and returns it, so that imports are never timed. A loader
takes the checkpoint's file and returns a dictionary of all tensors in host memory, usable as long
as the dictionary lives. Where a contender has knobs they are left as a user finds them, apart from
those that say "CPU".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Tensors = dict[str, Any]
Load = Callable[[str], Tensors]


def stoker() -> Load:
    import torch  # noqa: F401 - imports are not timed

    import stoker_loader

    def load(path: str) -> Tensors:
        with stoker_loader.open(path) as checkpoint:
            return checkpoint.load()

    return load


def safetensors() -> Load:
    from safetensors.torch import load_file

    return lambda path: load_file(path)


def safetensors_pread() -> Load:
    from safetensors.torch import load_file

    return lambda path: load_file(path, backend="pread")


def runai_streamer() -> Load:
    from runai_model_streamer import SafetensorsStreamer

    def load(path: str) -> Tensors:
        with SafetensorsStreamer() as streamer:
            streamer.stream_file(path)
            return dict(streamer.get_tensors())

    return load


def fastsafetensors() -> Load:
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    def load(path: str) -> Tensors:
        loader = SafeTensorsFileLoader(SingleGroup(), "cpu", nogds=True)
        loader.add_filenames({0: [path]})
        buffers = loader.copy_files_to_device()
        return {name: buffers.get_tensor(name) for name in loader.get_keys()}

    return load


def torch_load() -> Load:
    import torch

    return lambda path: torch.load(path, weights_only=True)


def torch_mmap() -> Load:
    import torch

    return lambda path: torch.load(path, weights_only=True, mmap=True)


def tensorizer() -> Load:
    from tensorizer import TensorDeserializer

    return lambda path: dict(TensorDeserializer(path, device="cpu").items())


def tensorflow() -> Load:
    """The operation under `tf.train.Checkpoint.restore`, which gives the tensors without making
    variables first: friendlier to TensorFlow than what a user runs."""
    import tensorflow as tf

    def load(path: str) -> Tensors:
        reader = tf.train.load_checkpoint(path)
        names = list(reader.get_variable_to_dtype_map())
        restored = tf.raw_ops.RestoreV2(
            prefix=path,
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            dtypes=[tf.bfloat16] * len(names),
        )
        return dict(zip(names, (tensor.numpy() for tensor in restored), strict=True))

    return load


MAKERS: dict[str, Callable[[], Load]] = {
    "stoker": stoker,
    "safetensors": safetensors,
    "safetensors_pread": safetensors_pread,
    "runai_streamer": runai_streamer,
    "fastsafetensors": fastsafetensors,
    "torch_load": torch_load,
    "torch_mmap": torch_mmap,
    "tensorizer": tensorizer,
    "tensorflow": tensorflow,
}
