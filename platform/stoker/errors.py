"""Every operating error of the control plane, as one tree.

    StokerError
    ├── BadRequest 400            the request cannot be served as it is
    │   ├── InvalidManifest       function.yaml breaks a rule; names the key and the nearest one
    │   └── ContextLengthExceeded prompt and answer do not fit the model's context
    ├── NotFound 404
    │   ├── FunctionNotFound      not deployed (a cold function is never "not found")
    │   ├── RevisionNotFound
    │   ├── CheckpointNotFound    nothing was pushed under this name
    │   ├── InstanceNotFound
    │   └── RequestNotFound       its timeline is not (or no longer) known
    ├── Conflict 409              somebody else changed it first
    │   ├── CheckpointInUse       a revision needs it
    │   └── FunctionTaken         an upload does not replace what somebody deployed
    ├── PayloadTooLarge 413
    ├── CheckpointInvalid 422     truncated, corrupt, or a pickle
    ├── QueueFull 429             the function holds as many requests as it may
    ├── FunctionFailed 500        the user's handler raised
    ├── InstanceLost 502          the instance died while it answered
    ├── Unavailable 503
    │   ├── StartupFailed         the instance could not start; carries the tail of its log
    │   ├── CrashLoop             starts failed repeatedly; stopped until `open_until`
    │   ├── NoCapacity            no node can hold the function
    │   └── ShuttingDown
    ├── StartupTimeout 504        slower than the function's `startup.timeout`
    ├── StorageFull 507
    └── PlatformNotReachable      a client's error: nothing answers at STOKER_URL

A leaf carries its HTTP status, a stable machine-readable `code`, whether a retry can help, and
facts in `details`. Broken invariants are assertions, not members of this tree.
"""

from __future__ import annotations

from typing import Any, ClassVar


class StokerError(Exception):
    """An operating error with everything an answer needs."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    type: ClassVar[str] = "server_error"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.details: dict[str, Any] = details or {}


class BadRequest(StokerError):
    status = 400
    code = "invalid_request"
    type = "invalid_request_error"


class InvalidManifest(BadRequest):
    code = "invalid_manifest"


class ContextLengthExceeded(BadRequest):
    code = "context_length_exceeded"


class NotFound(StokerError):
    status = 404
    code = "not_found"
    type = "invalid_request_error"


class FunctionNotFound(NotFound):
    code = "function_not_found"


class RevisionNotFound(NotFound):
    code = "revision_not_found"


class CheckpointNotFound(NotFound):
    code = "checkpoint_not_found"


class InstanceNotFound(NotFound):
    code = "instance_not_found"


class RequestNotFound(NotFound):
    code = "request_not_found"


class Conflict(StokerError):
    status = 409
    code = "conflict"
    type = "invalid_request_error"
    retryable = True


class CheckpointInUse(Conflict):
    code = "checkpoint_in_use"
    retryable = False


class FunctionTaken(Conflict):
    code = "function_taken"
    retryable = False


class PayloadTooLarge(StokerError):
    status = 413
    code = "payload_too_large"
    type = "invalid_request_error"


class CheckpointInvalid(StokerError):
    status = 422
    code = "checkpoint_invalid"
    type = "invalid_request_error"


class QueueFull(StokerError):
    status = 429
    code = "queue_full"
    type = "overloaded_error"
    retryable = True


class FunctionFailed(StokerError):
    status = 500
    code = "function_failed"
    type = "function_error"


class InstanceLost(StokerError):
    status = 502
    code = "instance_lost"
    retryable = True


class Unavailable(StokerError):
    status = 503
    code = "unavailable"
    retryable = True


class StartupFailed(Unavailable):
    code = "startup_failed"


class CrashLoop(Unavailable):
    code = "crash_loop"


class NoCapacity(Unavailable):
    code = "no_capacity"


class ShuttingDown(Unavailable):
    code = "shutting_down"


class StartupTimeout(StokerError):
    status = 504
    code = "startup_timeout"
    retryable = True


class StorageFull(StokerError):
    status = 507
    code = "storage_full"


class PlatformNotReachable(StokerError):
    code = "platform_not_reachable"
    retryable = True
