"""What an instance says went wrong, as a member of the platform's error tree."""

from __future__ import annotations

from pydantic import ValidationError

from stoker.errors import (
    BadRequest,
    CheckpointInvalid,
    ContextLengthExceeded,
    FunctionFailed,
    InstanceLost,
    PayloadTooLarge,
    StokerError,
    Unavailable,
)
from stoker_runtime.contract import WorkerError

_BY_CODE: dict[str, type[StokerError]] = {
    "context_length_exceeded": ContextLengthExceeded,
    "request_too_large": PayloadTooLarge,
    "wrong_engine": BadRequest,
    "overloaded": Unavailable,
    "not_ready": Unavailable,
}
_BY_TYPE: dict[str, type[StokerError]] = {
    "invalid_request_error": BadRequest,
    "handler_error": FunctionFailed,
    "checkpoint_error": CheckpointInvalid,
}


class EngineFailed(StokerError):
    """The instance's engine broke while it served; not the request's fault."""

    code = "engine_failed"


def error_of(fault: WorkerError) -> StokerError:
    """Keeps message, parameter and facts; what the runtime called it stays in `details`."""
    kind = _BY_CODE.get(fault.code) or _BY_TYPE.get(fault.type) or EngineFailed
    details = fault.details if fault.code == kind.code else {"reason": fault.code, **fault.details}
    return kind(fault.message, param=fault.param, details=details)


def error_of_response(status: int, body: bytes) -> StokerError:
    """The error that an instance answered with instead of a stream."""
    try:
        return error_of(WorkerError.model_validate_json(body))
    except ValidationError:
        return InstanceLost(f"the instance answered HTTP {status} without saying why")
