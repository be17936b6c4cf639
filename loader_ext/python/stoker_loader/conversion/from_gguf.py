"""Unpacks a GGUF file through Transformers, in a child without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stoker_loader.conversion.job import Job
from stoker_loader.errors import ConversionFailedError

PACKAGES = ("torch", "transformers", "gguf", "accelerate")
# `general.file_type` of GGUF: what most tensors were before anything was quantised.
FILE_TYPES = {0: "float32", 1: "float16"}
MAX_REASON_CHARACTERS = 500


def unpack(job: Job) -> None:
    """Write weights, configuration and tokenizer to the job's folder, as `save_pretrained` does.

    Without a dtype, float32 and float16 files stay what they are and all others become bfloat16.
    Raises ConversionFailedError with the words of the library that failed.
    """
    import torch
    import transformers
    from transformers.utils import logging

    assert job.output_folder is not None
    file, folder = Path(job.files[0]), Path(job.output_folder)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    options: dict[str, Any] = {"gguf_file": file.name}
    try:
        dtype = getattr(torch, job.dtype or usual_dtype(file))
        unpacked = dict(options, dtype=dtype)
        if hasattr(transformers, "GgufConfig"):
            unpacked["quantization_config"] = transformers.GgufConfig(dequantize=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(str(file.parent), **unpacked)
        model.save_pretrained(folder)
        if job.read_tokenizer:
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(file.parent), **options)
            tokenizer.save_pretrained(folder)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # these libraries raise whatever they come upon
        words = f"{type(error).__name__}: {error}"[:MAX_REASON_CHARACTERS]
        raise ConversionFailedError(
            f"{file}: Transformers cannot unpack it: {words}; update transformers and gguf, or get"
            " the model as safetensors",
            file=str(file),
        ) from error
    _forget_origin(folder / "config.json")


def usual_dtype(file: Path) -> str:
    """The attribute of torch for what most of the tensors in a file are unpacked to."""
    import gguf

    field = gguf.GGUFReader(file).get_field("general.file_type")
    return FILE_TYPES.get(int(field.contents()), "bfloat16") if field else "bfloat16"


def _forget_origin(path: Path) -> None:
    """The saved weights are plain: nothing of the GGUF file remains true."""
    config = json.loads(path.read_text())
    config.pop("quantization_config", None)
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
