"""Everything that the runtime raises on purpose, as one tree.

    RuntimeFault
    ├── InvalidRequest            400   the request itself is wrong
    │   └── RequestTooLarge       413   ... because its body exceeds the bound
    ├── UnknownRoute              404   nothing of that name on this socket
    ├── WrongState                409   the worker cannot do this now
    │   ├── NotReady              409   ... it has not loaded (or failed to load)
    │   ├── AlreadyLoaded         409   ... it has been told to load before
    │   └── WrongEngine           409   ... the engine it loaded answers another kind of request
    ├── Overloaded                503   a bounded queue is full, or the worker is shutting down
    ├── CheckpointRejected        422   the checkpoint cannot be served
    ├── HandlerSetupFailed        422   the user's handler could not be made ready
    ├── HandlerFailed             500   the user's predict() raised
    └── EngineFailed              500   an engine broke while it served

A fault carries the `WorkerError` that goes over the wire and the HTTP `status` it has before a
stream has begun. Broken invariants are assertions, never faults.
"""

from __future__ import annotations

from typing import Any, ClassVar

from stoker_runtime.contract import WorkerError


class RuntimeFault(Exception):
    """An operating error with words a user can act on."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "engine_error"
    retryable: ClassVar[bool] = False
    default_code: ClassVar[str] = "engine_failed"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.error = WorkerError(
            type=self.type,
            code=code or self.default_code,
            message=message,
            param=param,
            details=details or {},
        )


class InvalidRequest(RuntimeFault):
    """The request is wrong and will be wrong again."""

    status = 400
    type = "invalid_request_error"
    default_code = "invalid_request"


class RequestTooLarge(InvalidRequest):
    """The request's body exceeds the bound."""

    status = 413
    default_code = "request_too_large"


class UnknownRoute(RuntimeFault):
    """Nothing of that name and method is served on this socket."""

    status = 404
    type = "invalid_request_error"
    default_code = "unknown_route"


class WrongState(RuntimeFault):
    """The worker cannot do this in the state it is in."""

    status = 409
    default_code = "wrong_state"


class NotReady(WrongState):
    """The worker has not loaded a function."""

    default_code = "not_ready"


class AlreadyLoaded(WrongState):
    """A worker loads once in its life, and this one has been told to."""

    default_code = "already_loaded"


class WrongEngine(WrongState):
    """The loaded engine does not answer this kind of request."""

    default_code = "wrong_engine"


class Overloaded(RuntimeFault):
    """A bound is reached; the same request may succeed elsewhere or later."""

    status = 503
    retryable = True
    default_code = "overloaded"


class CheckpointRejected(RuntimeFault):
    """The checkpoint is missing, damaged, or of a kind that no engine serves."""

    status = 422
    type = "checkpoint_error"
    default_code = "checkpoint_rejected"


class HandlerSetupFailed(RuntimeFault):
    """The user's handler could not be found, imported or set up."""

    status = 422
    type = "handler_error"
    default_code = "setup_failed"


class HandlerFailed(RuntimeFault):
    """The user's `predict()` raised, or gave something that cannot be sent."""

    status = 500
    type = "handler_error"
    default_code = "handler_error"


class EngineFailed(RuntimeFault):
    """An engine broke while it served; not the request's fault."""

    default_code = "engine_failed"
