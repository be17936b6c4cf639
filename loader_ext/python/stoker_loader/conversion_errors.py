"""The branch of the error tree for converting other formats."""

from __future__ import annotations

from stoker_loader.error_base import LoaderError


class ConversionError(LoaderError):
    """A checkpoint of another format could not be converted."""


class SourceFormatError(ConversionError):
    """It is not clear which of the source's files holds the weights, or none does."""

    code = "source_format"


class PartsMismatchError(ConversionError):
    """The parts of a split file are not those that their names or their metadata say."""

    code = "parts_mismatch"


class MissingPackageError(ConversionError):
    """Converting from this format needs a package that is not installed."""

    code = "missing_package"


class PickleUnsafeError(ConversionError):
    """The pickle asks for more than tensors and plain containers; nothing of that ran."""

    code = "pickle_unsafe"


class PickleInvalidError(ConversionError):
    """The pickle cannot be read, or holds no tensors."""

    code = "pickle_invalid"


class EntryRefusedError(ConversionError):
    """An entry of the weights is no tensor, or one that safetensors cannot hold."""

    code = "entry_refused"


class ConversionLimitError(ConversionError):
    """Reading the source needed more memory, time or room than a file of its length may."""

    code = "conversion_limit"


class ConversionFailedError(ConversionError):
    """The reader of a format failed; the message has its words."""

    code = "conversion_failed"


class ConversionBusyError(ConversionError):
    """Another conversion is writing the same destination."""

    code = "conversion_busy"
