"""What is wrong with a manifest, said so that its author can put it right."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from stoker.errors import InvalidManifest

MAX_PROBLEMS = 50
MAX_QUOTED_BITS = 64

# Keys of the full manifest that nothing implements yet, with the value that changes nothing.
UNSUPPORTED: Mapping[str, Any] = MappingProxyType(
    {
        "model.quantization": "none",
        "model.adapters": [],
        "runtime.image": None,
        "resources.gpu": 0,
        "resources.gpu_memory": None,
        "scale.buffer": 0,
        "scale.schedule": [],
        "startup.on_cold": "hold",
        "startup.fallback": None,
        "migration.enabled": True,
        "migration.max_per_request": 3,
        "traffic": [{"revision": "latest", "percent": 100}],
        "secrets": [],
        "tenant": "default",
    }
)


WHOLLY_UNSUPPORTED = frozenset({"migration"})  # sections without any supported key


@dataclass(frozen=True, slots=True)
class Problem:
    """One broken rule: `path` is the key it is about, like "runtime.engine" ("" for the whole),
    `message` a sentence that names it."""

    path: str
    message: str


def invalid(problems: Sequence[Problem]) -> InvalidManifest:
    """The error that carries all `problems`, the first one as its message."""
    first, *others = problems
    more = f" (and {len(others)} more, see details)" if others else ""
    return InvalidManifest(
        f"{first.message}{more}",
        param=first.path or None,
        details={"problems": [asdict(problem) for problem in problems[:MAX_PROBLEMS]]},
    )


def drop_unsupported(data: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The manifest without the keys that are not supported yet, and a problem for each of them
    that asks for more than its default."""
    kept: dict[str, Any] = {}
    problems: list[Problem] = []
    for key, value in data.items():
        if key in UNSUPPORTED:
            problems += _unless_default(key, value)
        elif isinstance(value, Mapping):
            inner = {name: f"{key}.{name}" for name in value}
            for name, path in inner.items():
                problems += _unless_default(path, value[name]) if path in UNSUPPORTED else ()
            rest = {name: value[name] for name, path in inner.items() if path not in UNSUPPORTED}
            if key not in WHOLLY_UNSUPPORTED:
                kept[key] = rest
            else:
                problems += (
                    Problem(inner[name], _unknown(inner[name], [*UNSUPPORTED])) for name in rest
                )
        elif key in WHOLLY_UNSUPPORTED:
            problems += [Problem(key, f"{key}: not supported yet; leave it out")]
        else:
            kept[key] = value
    return kept, problems


def explain(error: ValidationError, model: type[BaseModel]) -> Iterator[Problem]:
    """Pydantic's findings about `model` as problems, unknown keys with the nearest known one."""
    known = [*known_keys(model), *UNSUPPORTED]
    for finding in error.errors(include_url=False):
        path = ".".join(str(part) for part in finding["loc"])
        if finding["type"] == "extra_forbidden":
            yield Problem(path, _unknown(path, known))
        elif finding["type"] == "missing":
            yield Problem(path, f"key {path!r} is missing")
        else:
            message = finding["msg"].removeprefix("Value error, ")
            message = message.replace("Input should be", "must be", 1)
            given = finding["input"]
            own = finding["type"] == "value_error"  # our rules name the value where it helps
            if isinstance(given, str | int | float) and not own:
                message += f", not {_quoted(given)}"[:100]
            yield Problem(path, f"{path}: {message}" if path else message)


def _quoted(given: str | int | float) -> str:
    """As it was given; Python refuses to write numbers of thousands of digits."""
    if isinstance(given, int) and given.bit_length() > MAX_QUOTED_BITS:
        return "so large a number"
    return repr(given)


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key that `model` and its sections know, as dotted paths."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from known_keys(kind, f"{prefix}{name}.")


def _unless_default(path: str, value: Any) -> list[Problem]:
    default = UNSUPPORTED[path]
    if value is None or value == default:
        return []
    return [Problem(path, f"{path}: not supported yet; leave it out (its default is {default!r})")]


def _unknown(path: str, known: Sequence[str]) -> str:
    section, _, key = path.rpartition(".")
    siblings = {_leaf(name): name for name in known if name.rpartition(".")[0] == section}
    leaves = {_leaf(name): name for name in reversed(known)}
    near = [siblings[name] for name in difflib.get_close_matches(key, siblings, n=1)] or [
        leaves[name] for name in difflib.get_close_matches(key, leaves, n=1, cutoff=0.75)
    ]
    if near:
        return f"unknown key {path!r}; did you mean {near[0]!r}?"
    here = sorted(name for name, path in siblings.items() if path not in UNSUPPORTED)
    return f"unknown key {path!r}; the keys here are {', '.join(here)}"


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]
