"""Finds a user's `setup` and `predict` in the file that the manifest names."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from stoker_runtime.engines.handler_context import HandlerContext
from stoker_runtime.engines.handler_faults import setup_fault
from stoker_runtime.errors import HandlerSetupFailed

CLASS_NAME = "Handler"
EXAMPLE = "def predict(payload): return payload"

Setup = Callable[[HandlerContext], Any]
Predict = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class UserHandler:
    """What a user's file offers, bound and ready to call; both may be of any kind of function."""

    setup: Setup | None
    predict: Predict


def load_source(source_path: Path, file_name: str, module_name: str) -> UserHandler:
    """Imports `file_name` of `source_path` under `module_name` and binds what it defines.

    A class `Handler` is instantiated without arguments; else the module's own functions count.
    `source_path` is put first on `sys.path`, so that the file can import its neighbours.

    Raises:
        HandlerSetupFailed: the file is missing, does not import, or defines no usable `predict`.
    """
    module = _import(source_path, file_name, module_name)
    owner = getattr(module, CLASS_NAME, None)
    if owner is None:
        owner = module
    elif inspect.isclass(owner):
        try:
            owner = owner()
        except BaseException as error:
            raise setup_fault(error, source_path, f"{CLASS_NAME}() in {file_name}") from error
    setup = getattr(owner, "setup", None)
    predict = getattr(owner, "predict", None)
    if not callable(predict):
        raise HandlerSetupFailed(
            f"{file_name} has no predict: define `class {CLASS_NAME}` with a method "
            f"`predict(self, payload)`, or a function like `{EXAMPLE}`",
            code="handler_incomplete",
        )
    if setup is not None and not callable(setup):
        raise HandlerSetupFailed(
            f"setup in {file_name} is a {type(setup).__name__}: make it a function or leave it out",
            code="handler_incomplete",
        )
    _check_takes_payload(predict, file_name)
    return UserHandler(setup=_with_context(setup, file_name) if setup else None, predict=predict)


def _import(source_path: Path, file_name: str, module_name: str) -> ModuleType:
    root = source_path.resolve()
    path = (root / file_name).resolve()
    if not path.is_relative_to(root):
        raise HandlerSetupFailed(
            f"runtime.handler {file_name!r} leaves the function's own folder: name a file in it",
            code="handler_missing",
        )
    if not path.is_file():
        found = ", ".join(sorted(p.name for p in root.glob("*.py"))) or "no Python file at all"
        raise HandlerSetupFailed(
            f"runtime.handler names {file_name!r}, but the function's folder holds {found}",
            code="handler_missing",
        )
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise HandlerSetupFailed(
            f"runtime.handler {file_name!r} is not a Python file: its name must end in .py",
            code="handler_missing",
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # pickle and dataclasses look their module up here
    sys.path.insert(0, str(root))
    # The folder is a verified artifact that other instances share: compiled bytecode beside the
    # sources would be a file that its digest does not name.
    sys.dont_write_bytecode = True
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        raise setup_fault(error, source_path, f"import of {file_name}") from error
    return module


def _check_takes_payload(predict: Predict, file_name: str) -> None:
    try:
        signature = inspect.signature(predict)
    except ValueError:  # some built-in callables have none
        return
    if not _accepts(signature, object()):
        raise HandlerSetupFailed(
            f"predict{signature} in {file_name} must take one argument, the payload",
            code="handler_incomplete",
        )


def _accepts(signature: inspect.Signature, *args: object, **kwargs: object) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _with_context(setup: Callable[..., Any], file_name: str) -> Setup:
    """`setup` as a function of the context, whether or not it wants one."""
    try:
        signature = inspect.signature(setup)
    except ValueError:
        return setup
    if not signature.parameters:
        return lambda _context: setup()
    if _accepts(signature, object()):
        return setup
    if _accepts(signature, context=object()):
        return lambda context: setup(context=context)
    raise HandlerSetupFailed(
        f"setup{signature} in {file_name} must take the context alone, or nothing",
        code="handler_incomplete",
    )
