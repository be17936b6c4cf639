"""The branch of the error tree for LoRA adapters."""

from __future__ import annotations

from stoker_loader.error_base import LoaderError


class AdapterError(LoaderError):
    """A LoRA adapter cannot be used, or not with this model."""


class AdapterInvalidError(AdapterError):
    """The adapter's configuration and tensors are not what peft writes."""

    code = "adapter_invalid"


class AdapterUnsupportedError(AdapterError):
    """The adapter needs something that is not plain LoRA; the message names it."""

    code = "adapter_unsupported"


class AdapterMismatchError(AdapterError):
    """An adapter and a model do not fit; the three tuples name every module that does not."""

    code = "adapter_mismatch"

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        missing: tuple[str, ...] = (),
        fused: tuple[str, ...] = (),
        mismatched: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, file=file)
        self.missing = missing
        self.fused = fused
        self.mismatched = mismatched


class AdapterNameError(AdapterError):
    """An adapter of this name is attached to the model already, or none is."""

    code = "adapter_name"
