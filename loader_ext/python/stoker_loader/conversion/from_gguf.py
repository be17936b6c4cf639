"""Unpacks a GGUF file through Transformers, in a child behind its walls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stoker_loader.conversion.gguf_parts import join
from stoker_loader.conversion.job import Job, Outcome
from stoker_loader.errors import ConversionFailedError, LoaderError
from stoker_loader.page_cache import Progress

PACKAGES = ("torch", "transformers", "gguf", "accelerate")
# `general.file_type` of GGUF: what most tensors were before anything was quantised.
FILE_TYPES = {0: "float32", 1: "float16"}
MAX_REASON_CHARACTERS = 500


def get_ready() -> None:
    """Import all that reading needs, before anything is forbidden."""
    import gguf  # noqa: F401
    import torch
    import torch._dynamo  # every model imports it, and it sets its environment

    # Made when they are asked for; below the first one libraries are looked for by ctypes.
    from transformers import (  # noqa: F401
        AutoModelForCausalLM,
        AutoTokenizer,
        PreTrainedModel,
        PreTrainedTokenizerFast,
    )
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def rewrite(job: Job, advance: Progress) -> Outcome:
    """Write weights, configuration and tokenizer to the job's folder, as `save_pretrained` does.

    Without a dtype, float32 and float16 files stay what they are and all others become bfloat16.
    Raises PartsMismatchError, ShardDuplicateError, and ConversionFailedError with the words of the
    library that failed.
    """
    import torch
    import transformers

    assert job.output_folder is not None
    file, folder = Path(job.files[0]), Path(job.output_folder)
    size_bytes = sum(Path(part).stat().st_size for part in job.files)
    advance(0, size_bytes)
    options: dict[str, Any] = {"gguf_file": file.name}
    try:
        # Transformers knows no parts: it would make up the weights that the first one lacks.
        join(job.files)
        dtype = getattr(torch, job.dtype or usual_dtype(file))
        unpacked = dict(options, dtype=dtype)
        if hasattr(transformers, "GgufConfig"):
            unpacked["quantization_config"] = transformers.GgufConfig(dequantize=True)
        automatic: Any = transformers.AutoModelForCausalLM
        model, info = automatic.from_pretrained(
            str(file.parent), output_loading_info=True, **unpacked
        )
        _refuse_made_up(file, sorted(info["missing_keys"]))
        model.save_pretrained(folder)
        if job.read_tokenizer:
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(file.parent), **options)
            tokenizer.save_pretrained(folder)
    except (MemoryError, OSError, LoaderError):
        raise
    except Exception as error:  # these libraries raise whatever they come upon
        words = f"{type(error).__name__}: {error}"[:MAX_REASON_CHARACTERS]
        raise ConversionFailedError(
            f"{file}: Transformers cannot unpack it: {words}; update transformers and gguf, or get"
            " the model as safetensors",
            file=str(file),
        ) from error
    _forget_origin(folder / "config.json")
    advance(size_bytes, size_bytes)
    return Outcome()


def _refuse_made_up(file: Path, names: list[str]) -> None:
    """Raises ConversionFailedError: what a file lacks, Transformers fills with random numbers."""
    if names:
        raise ConversionFailedError(
            f"{file}: holds no {names[0]!r} and {len(names) - 1} other weights of its model; fetch"
            " it again",
            file=str(file),
            tensor=names[0],
        )


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
