"""What is said of a name that stands for nothing: the nearest one that does, and the next step."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from stoker.errors import CheckpointNotFound, FunctionNotFound

DIGEST_PREFIX = "blake3:"
HEX_DIGITS = 64


def function_not_found(name: str, known: Sequence[str]) -> FunctionNotFound:
    """`known` are the functions that there are."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return FunctionNotFound(
        f"no function {name!r} is deployed; {hint}deploy it with `stoker deploy DIR`,"
        " or see `stoker list`",
        param=name,
        details={"nearest": near},
    )


def checkpoint_not_found(reference: str, known: Sequence[str]) -> CheckpointNotFound:
    """`known` are the names that there are, also with the digests that they stood for."""
    near = difflib.get_close_matches(reference, [name for name in known if "@" not in name], 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    name = reference.partition("@")[0]
    target = "NAME" if is_digest(name) else name
    return CheckpointNotFound(
        f"no checkpoint {reference!r} was pushed; {hint}push it with `stoker push DIR {target}`",
        param=reference,
        details={"nearest": near},
    )


def is_digest(reference: str) -> bool:
    digits = reference.removeprefix(DIGEST_PREFIX)
    return len(digits) == HEX_DIGITS and all(digit in "0123456789abcdef" for digit in digits)
