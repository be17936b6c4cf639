"""Everything that this package raises, as one tree.

    LoaderError
    ├── StorageError                    a system call failed (errno is set)
    ├── CheckpointNotFoundError         nothing at the path
    ├── RefusedError                    there, and not to be opened
    │   ├── NoSafetensorsError  PickleRefusedError  SymlinkRefusedError  FileNameError
    ├── HeaderError                     a rule of the safetensors format is broken
    │   ├── FileTooShortError  HeaderTooLongError  HeaderTruncatedError  HeaderEncodingError
    │   ├── HeaderStartError  HeaderJsonError  DuplicateNameError  MetadataError
    │   ├── UnknownDtypeError  BadShapeError  SizeOverflowError  SizeMismatchError
    │   └── BadOffsetError  OffsetsReversedError  DataTruncatedError  OverlapError  HoleError
    │       TrailingBytesError  SidecarInvalidError
    ├── ShardError                      the files of a sharded checkpoint contradict each other
    │   └── IndexInvalidError  ShardMissingError  IndexMismatchError  ShardDuplicateError
    ├── IntegrityError                  bytes are not what a digest says
    │   ├── ChunkMismatchError  LengthMismatchError  FileMissingError  FileUnexpectedError
    │   └── RootMismatchError  FileChangedError
    ├── RequestError                    what was asked for cannot be
    │   ├── ResidencyHiddenError  PinRefusedError  DigestInvalidError
    │   ├── DigestsMissingError  DestinationExistsError
    │   ├── CheckpointClosedError  UnknownTensorError  UnsupportedDtypeError
    │   ├── PlanInvalidError  TensorUnplannedError  SplitMismatchError
    │   └── ModuleMismatchError
    ├── BackendError                    a file cannot be read in the way that was asked for
    │   └── BackendUnknownError  BackendRefusedError
    ├── FetchError                      bytes from elsewhere did not arrive
    │   ├── NoSourceError  SourceMissingError  SourceRefusedError  SourceChangedError
    │   ├── SourceFailedError  RangeRefusedError  RangeIgnoredError
    │   └── FetchBusyError  FetchAbandonedError  WaitTimeoutError  ArrivalInvalidError
    ├── AcceleratorError                a GPU, or its driver, does not do what was asked for
    │   ├── DriverMissingError  DriverOutdatedError  DriverCallError
    │   └── DeviceUnknownError  DeviceAddressError  DeviceUnavailableError
    ├── ConversionError                 a checkpoint of another format could not be converted
    │   ├── SourceFormatError  MissingPackageError  PickleUnsafeError  PickleInvalidError
    │   ├── EntryRefusedError  ConversionLimitError  ConversionFailedError  ConversionBusyError
    │   └── PartsMismatchError
    ├── AdapterError                    a LoRA adapter cannot be used, or not with this model
    │   └── AdapterInvalidError  AdapterUnsupportedError  AdapterMismatchError  AdapterNameError
    └── LoadCancelledError              the progress callback raised, or a signal arrived

Every leaf has a stable `code`, and each error of the native core is exactly one leaf.
"""

from __future__ import annotations

from typing import Unpack

# All are found here; the branches beside reading files are defined in files of their own.
# (isort would make each of their names a statement.)
# isort: off
# fmt: off
from stoker_loader.accelerator_errors import (
    AcceleratorError as AcceleratorError, DeviceAddressError as DeviceAddressError,
    DeviceUnavailableError as DeviceUnavailableError, DeviceUnknownError as DeviceUnknownError,
    DriverCallError as DriverCallError, DriverMissingError as DriverMissingError,
    DriverOutdatedError as DriverOutdatedError,
)
from stoker_loader.adapter_errors import (
    AdapterError as AdapterError, AdapterInvalidError as AdapterInvalidError,
    AdapterMismatchError as AdapterMismatchError, AdapterNameError as AdapterNameError,
    AdapterUnsupportedError as AdapterUnsupportedError,
)
from stoker_loader.backend_errors import (
    BackendError as BackendError, BackendRefusedError as BackendRefusedError,
    BackendUnknownError as BackendUnknownError,
)
from stoker_loader.conversion_errors import (
    ConversionBusyError as ConversionBusyError, ConversionError as ConversionError,
    ConversionFailedError as ConversionFailedError, ConversionLimitError as ConversionLimitError,
    EntryRefusedError as EntryRefusedError, MissingPackageError as MissingPackageError,
    PartsMismatchError as PartsMismatchError,
    PickleInvalidError as PickleInvalidError, PickleUnsafeError as PickleUnsafeError,
    SourceFormatError as SourceFormatError,
)
from stoker_loader.error_base import (
    LoaderError as LoaderError, Place as Place,
)
from stoker_loader.fetch_errors import (
    ArrivalInvalidError as ArrivalInvalidError, FetchAbandonedError as FetchAbandonedError,
    FetchBusyError as FetchBusyError, FetchError as FetchError, NoSourceError as NoSourceError,
    RangeIgnoredError as RangeIgnoredError, RangeRefusedError as RangeRefusedError,
    SourceChangedError as SourceChangedError, SourceFailedError as SourceFailedError,
    SourceMissingError as SourceMissingError, SourceRefusedError as SourceRefusedError,
    WaitTimeoutError as WaitTimeoutError,
)
from stoker_loader.integrity_errors import (
    ChunkMismatchError as ChunkMismatchError, FileChangedError as FileChangedError,
    FileMissingError as FileMissingError, FileUnexpectedError as FileUnexpectedError,
    IntegrityError as IntegrityError, LengthMismatchError as LengthMismatchError,
    RootMismatchError as RootMismatchError,
)
# fmt: on
# isort: on


class StorageError(LoaderError):
    """A system call failed; `errno` says how."""

    code = "io_error"

    def __init__(self, message: str, *, errno: int | None = None, **place: Unpack[Place]) -> None:
        super().__init__(message, **place)
        self.errno = errno


class CheckpointNotFoundError(LoaderError):
    """There is nothing at the path."""

    code = "checkpoint_not_found"


class RefusedError(LoaderError):
    """What is at the path is not opened."""


class NoSafetensorsError(RefusedError):
    """The directory holds no `.safetensors` file."""

    code = "no_safetensors"


class PickleRefusedError(RefusedError):
    """The weights are pickles, which can run code when they are read."""

    code = "pickle_refused"


class SymlinkRefusedError(RefusedError):
    """A symbolic link stands where its target's bytes would have to be trusted."""

    code = "symlink_refused"


class FileNameError(RefusedError):
    """A file name is not UTF-8."""

    code = "name_not_utf8"


class HeaderError(LoaderError):
    """A file breaks a rule of the safetensors format."""


class FileTooShortError(HeaderError):
    """The file is shorter than the 8 bytes of the header's length."""

    code = "file_too_short"


class HeaderTooLongError(HeaderError):
    """The header claims more bytes than the format allows."""

    code = "header_too_long"


class HeaderTruncatedError(HeaderError):
    """The header reaches behind the file's end."""

    code = "header_truncated"


class HeaderEncodingError(HeaderError):
    """The header is not UTF-8."""

    code = "header_not_utf8"


class HeaderStartError(HeaderError):
    """The header does not begin with `{`."""

    code = "header_start"


class HeaderJsonError(HeaderError):
    """The header is not the JSON that the format asks for."""

    code = "header_json"


class DuplicateNameError(HeaderError):
    """A name appears twice in the header."""

    code = "duplicate_name"


class MetadataError(HeaderError):
    """`__metadata__` is not a map of strings to strings."""

    code = "metadata_not_string"


class UnknownDtypeError(HeaderError):
    """The dtype is none of the format's."""

    code = "unknown_dtype"


class BadShapeError(HeaderError):
    """A dimension is negative, a fraction or beyond 64 bits."""

    code = "bad_shape"


class SizeOverflowError(HeaderError):
    """Shape times dtype is beyond 64 bits, or not a whole number of bytes."""

    code = "size_overflow"


class SizeMismatchError(HeaderError):
    """Shape times dtype is not the length of the tensor's bytes."""

    code = "size_mismatch"


class BadOffsetError(HeaderError):
    """An offset is negative, a fraction or beyond 64 bits."""

    code = "bad_offset"


class OffsetsReversedError(HeaderError):
    """A tensor ends before it begins."""

    code = "offsets_reversed"


class DataTruncatedError(HeaderError):
    """A tensor reaches behind the file's end."""

    code = "data_truncated"


class OverlapError(HeaderError):
    """Two tensors share bytes."""

    code = "overlap"


class HoleError(HeaderError):
    """Bytes before a tensor belong to no tensor."""

    code = "hole"


class TrailingBytesError(HeaderError):
    """Bytes behind the last tensor belong to no tensor."""

    code = "trailing_bytes"


class SidecarInvalidError(HeaderError):
    """The binary sidecar of a header is damaged."""

    code = "sidecar_invalid"


class ShardError(LoaderError):
    """The files of a sharded checkpoint contradict each other."""


class IndexInvalidError(ShardError):
    """The index of a sharded checkpoint is not the JSON it should be."""

    code = "index_invalid"


class ShardMissingError(ShardError):
    """The index names a shard that is not there."""

    code = "shard_missing"


class IndexMismatchError(ShardError):
    """The index and a shard disagree about where a tensor is."""

    code = "index_mismatch"


class ShardDuplicateError(ShardError):
    """Two shards hold a tensor of the same name."""

    code = "shard_duplicate"


class RequestError(LoaderError):
    """What was asked for cannot be done."""


class ResidencyHiddenError(RequestError):
    """The kernel does not tell this user what is resident."""

    code = "residency_hidden"


class PinRefusedError(RequestError):
    """The process may not lock so much memory."""

    code = "pin_refused"


class DigestInvalidError(RequestError):
    """What should be a digest is none."""

    code = "digest_invalid"


class DigestsMissingError(RequestError):
    """There are no digests to verify a file by."""

    code = "digests_missing"


class DestinationExistsError(RequestError):
    """The destination exists already."""

    code = "destination_exists"


class PlanInvalidError(RequestError):
    """The plan of a tensor-parallel load makes no sense."""

    code = "plan_invalid"


class TensorUnplannedError(RequestError):
    """No rule of the plan is for this tensor."""

    code = "tensor_unplanned"


class SplitMismatchError(RequestError):
    """The plan cannot split a tensor of this shape among so many ranks."""

    code = "split_mismatch"


class CheckpointClosedError(RequestError):
    """The checkpoint was closed; tensors that it gave out live on."""

    code = "checkpoint_closed"


class UnknownTensorError(RequestError):
    """The checkpoint has no tensor of this name."""

    code = "unknown_tensor"


class UnsupportedDtypeError(RequestError):
    """The installed PyTorch has no dtype for this tensor."""

    code = "unsupported_dtype"


class ModuleMismatchError(RequestError):
    """A checkpoint and a module do not fit; the three tuples name every tensor that does not."""

    code = "module_mismatch"

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        missing: tuple[str, ...] = (),
        unexpected: tuple[str, ...] = (),
        mismatched: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, file=file)
        self.missing = missing
        self.unexpected = unexpected
        self.mismatched = mismatched


class LoadCancelledError(LoaderError):
    """The progress callback raised, or a signal arrived."""

    code = "cancelled"
