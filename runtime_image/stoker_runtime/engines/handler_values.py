"""Encodes what `predict` gives as lines of the invoke stream."""

from __future__ import annotations

import orjson

from stoker_runtime.contract import InvokeFailed
from stoker_runtime.errors import HandlerFailed, RuntimeFault
from stoker_runtime.streaming import line_of

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE


def value_line(index: int, value: object, *, stream: bool) -> bytes:
    """A `ValueEvent` as a line; beyond JSON's own types it takes dataclasses, dates, UUIDs, enums
    and numpy arrays. NaN becomes null, for JSON has no other word for it.

    Raises:
        HandlerFailed: the value holds something that JSON cannot carry.
    """
    event = {"kind": "value", "index": index, "value": value, "stream": stream}
    try:
        return orjson.dumps(event, default=_refuse, option=_OPTIONS)
    except orjson.JSONEncodeError as error:
        cause = error.__cause__
        why = str(cause) if isinstance(cause, _NotJsonError) else str(error)
        raise HandlerFailed(
            f"predict gave a {type(value).__qualname__} that JSON cannot carry ({why}): "
            "give dicts with text keys, lists, text, numbers, booleans and None, "
            "for example tensor.tolist()",
            code="handler_error",
            details={"type": type(value).__qualname__},
        ) from error


def failed_line(fault: RuntimeFault) -> bytes:
    """The stream's last line when `predict` broke."""
    return line_of(InvokeFailed(error=fault.error))


class _NotJsonError(TypeError):
    pass


def _refuse(value: object) -> object:
    kind = type(value)
    raise _NotJsonError(f"it holds a {kind.__module__}.{kind.__qualname__}")
