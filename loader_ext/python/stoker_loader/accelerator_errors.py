"""The branch of the error tree for GPUs and their drivers."""

from __future__ import annotations

from typing import Unpack

from stoker_loader.error_base import LoaderError, Place


class AcceleratorError(LoaderError):
    """A GPU, or its driver, does not do what was asked for; `file` is the driver's library."""


class DriverMissingError(AcceleratorError):
    """The NVIDIA driver's library cannot be loaded."""

    code = "driver_missing"


class DriverOutdatedError(AcceleratorError):
    """The NVIDIA driver lacks a function that copying needs."""

    code = "driver_outdated"


class DriverCallError(AcceleratorError):
    """A call of the NVIDIA driver failed; `call` and `status` say which and how."""

    code = "driver_call"

    def __init__(
        self,
        message: str,
        *,
        call: str | None = None,
        status: int | None = None,
        **place: Unpack[Place],
    ) -> None:
        super().__init__(message, **place)
        self.call = call
        self.status = status


class DeviceUnknownError(AcceleratorError):
    """The NVIDIA driver shows no device of this number."""

    code = "device_unknown"


class DeviceAddressError(AcceleratorError):
    """A destination is not memory of the device that it was given for."""

    code = "device_address"


class DeviceUnavailableError(AcceleratorError):
    """The installed PyTorch cannot use the device."""

    code = "device_unavailable"
