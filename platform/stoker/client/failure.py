"""What a refusal means: the error that it stands for, its exit code, its remedy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Any

from stoker import errors
from stoker.errors import StokerError

MAX_RAW_MESSAGE_CHARS = 500  # of a body that is not JSON


class ExitCode(IntEnum):
    """What `stoker` exits with. Scripts may rely on these."""

    OK = 0
    FAILED = 1  # an operating error that no other code names
    USAGE = 2  # the command line, or the manifest, is wrong
    NOT_FOUND = 3
    NOT_REACHABLE = 4  # nothing answers at STOKER_URL
    STARTUP = 5  # an instance could not start, or not in time
    BUSY = 6  # refused for now: queue full, no capacity, shutting down
    INTERRUPTED = 130


_EXIT_CODES: tuple[tuple[type[StokerError], ExitCode], ...] = (
    (errors.InvalidManifest, ExitCode.USAGE),
    (errors.NotFound, ExitCode.NOT_FOUND),
    (errors.PlatformNotReachable, ExitCode.NOT_REACHABLE),
    (errors.StartupTimeout, ExitCode.STARTUP),
    (errors.StartupFailed, ExitCode.STARTUP),
    (errors.CrashLoop, ExitCode.STARTUP),
    (errors.QueueFull, ExitCode.BUSY),
    (errors.Unavailable, ExitCode.BUSY),
)

_NEXT_STEPS: tuple[tuple[type[StokerError], str], ...] = (
    (errors.PlatformNotReachable, "start it with `stoker up`, or set STOKER_URL (or --url)"),
    (errors.InvalidManifest, "correct function.yaml and deploy again"),
    (errors.FunctionNotFound, "see what is deployed with `stoker list`"),
    (errors.RevisionNotFound, "see its revisions with `stoker describe NAME`"),
    (errors.CheckpointNotFound, "push it with `stoker push DIR|FILE NAME`"),
    (errors.CheckpointInvalid, "export the model again as safetensors, then push it anew"),
    (errors.CrashLoop, "read `stoker logs NAME`, then deploy a corrected version"),
    (errors.StartupFailed, "read `stoker logs NAME`; it ends with the reason"),
    (errors.StartupTimeout, "raise `startup.timeout` in function.yaml, or prewarm the function"),
    (errors.QueueFull, "try again shortly, or raise `scale.max` or `startup.max_held`"),
    (errors.NoCapacity, "free a node with `stoker scale OTHER 0`, or lower `resources`"),
    (errors.ShuttingDown, "wait until the platform is up again"),
    (errors.ContextLengthExceeded, "shorten the prompt, or lower --max-tokens"),
    (errors.FunctionFailed, "read `stoker logs NAME` for the handler's traceback"),
    (errors.InstanceLost, "try again: the next request starts a new instance"),
    (errors.StorageFull, "make room under the platform's --home, and see that it may write there"),
)

_BY_STATUS: dict[int, type[StokerError]] = {
    400: errors.BadRequest,
    404: errors.NotFound,
    409: errors.Conflict,
    413: errors.PayloadTooLarge,
    422: errors.BadRequest,
    429: errors.QueueFull,
    502: errors.InstanceLost,
    503: errors.Unavailable,
    504: errors.StartupTimeout,
    507: errors.StorageFull,
}


def exit_code(error: StokerError) -> ExitCode:
    """The exit code that stands for `error`."""
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), ExitCode.FAILED)


def next_step(error: StokerError) -> str | None:
    """What to do about `error`, as one sentence; None where only the message can say."""
    return next((step for kind, step in _NEXT_STEPS if isinstance(error, kind)), None)


def elaboration(error: StokerError) -> tuple[str, ...]:
    """More lines about `error`: a manifest's other problems, the end of a failed start's log."""
    problems = error.details.get("problems", ())
    tail = error.details.get("log_tail", ())
    return (*(problem["message"] for problem in problems[1:]), *(f"| {line}" for line in tail))


def error_from(
    body: object, *, status: int = 500, retry_after_s: float | None = None
) -> StokerError:
    """The error that a reply stands for: RFC 9457 problem details, or OpenAI's error object.

    `code` decides the class, else the HTTP status. What is neither shape is quoted as it came.
    """
    message, fields = _said(body, status)
    kind = _class_of(fields, status)
    details = fields.get("details")
    return kind(
        message,
        param=fields.get("param"),
        retry_after_s=retry_after_s,
        details=dict(details) if isinstance(details, Mapping) else None,
    )


def _said(body: object, status: int) -> tuple[str, Mapping[str, Any]]:
    """The message of an error body and what else it says."""
    match body:
        case {"error": {"message": str(message), **fields}}:
            return message, _named(fields)
        case {"error": str(message)}:
            return message, {}
        case {"detail": str(message), **fields} | {"title": str(message), **fields}:
            return message, _named(fields)
        case _:
            return f"HTTP {status}: {str(body)[:MAX_RAW_MESSAGE_CHARS]}", {}


def _named(fields: Mapping[object, object]) -> dict[str, Any]:
    return {str(name): value for name, value in fields.items()}


def _class_of(fields: Mapping[str, Any], status: int) -> type[StokerError]:
    for kind in _tree(StokerError):
        if "code" in vars(kind) and kind.code == fields.get("code"):
            return kind
    return _BY_STATUS.get(status, StokerError)


def _tree(kind: type[StokerError]) -> Iterator[type[StokerError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _tree(child)
