"""vLLM's load format `stoker`: weights as views of one mapping that all ranks of a node share.

    vllm serve DIRECTORY --load-format stoker --model-loader-extra-config '{"verify": true}'

vLLM finds `register` by the entry point group `vllm.general_plugins`, in each of its processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stoker_loader.errors import CheckpointNotFoundError
from stoker_loader.opening import open_checkpoint

if TYPE_CHECKING:
    import torch

LOAD_FORMAT = "stoker"
OPTIONS = ("verify", "source")


def register() -> None:
    """Make the format known to vLLM (0.9.2 or newer)."""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    @register_model_loader(LOAD_FORMAT)
    class StokerModelLoader(BaseModelLoader):  # type: ignore[misc]
        """Hands vLLM's models the tensors of a local directory."""

        def __init__(self, load_config: Any) -> None:
            super().__init__(load_config)
            self.options = options_of(load_config.model_loader_extra_config or {})

        def download_model(self, model_config: Any) -> None:
            """Nothing is downloaded; raises CheckpointNotFoundError for what is not here."""
            directory_of(model_config)

        def load_weights(self, model: Any, model_config: Any) -> None:
            """Give the model all weights; it takes its rank's shares and moves them."""
            model.load_weights(tensors_of(directory_of(model_config), **self.options).items())


def options_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `--model-loader-extra-config`; raises ValueError for one that is none."""
    for name in given:
        if name not in OPTIONS:
            raise ValueError(
                f"model_loader_extra_config: no option {name!r}; there are {', '.join(OPTIONS)}"
            )
    return dict(given)


def directory_of(model_config: Any) -> Path:
    """Where the weights are: `model_weights` where vLLM says them apart, else `model`."""
    named = getattr(model_config, "model_weights", None) or model_config.model
    if not Path(named).exists():
        raise CheckpointNotFoundError(
            f"{named}: the load format {LOAD_FORMAT!r} reads local directories; download the model"
            " first, and name the directory",
            file=str(named),
        )
    return Path(named)


def tensors_of(
    directory: Path, *, verify: bool = False, source: Any = "auto"
) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, which keep its mapping when it is closed."""
    with open_checkpoint(directory, verify=verify) as checkpoint:
        return checkpoint.load(source=source)
