"""Small user functions that tests deploy."""

from __future__ import annotations

from pathlib import Path

ECHO = """
def predict(payload):
    return payload
"""

FAILS_IN_SETUP = """
def setup():
    print("about to look for the flux capacitor")
    raise RuntimeError("flux capacitor missing")

def predict(payload):
    return payload
"""

DIES = """
import os

def predict(payload):
    print("last words", flush=True)
    os._exit(9)
"""


def write_handler(folder: Path, code: str) -> Path:
    """Returns `folder`, holding `code` as its handler.py."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "handler.py").write_text(code)
    return folder
