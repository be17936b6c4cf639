"""`stoker init`: a new function's first files."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path

from stoker.errors import BadRequest, Conflict

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")

HANDLER_YAML = """\
name: {name}
runtime:
  engine: handler
  handler: handler.py
scale:
  min: 0          # nothing runs until somebody calls
  max: 1
  target: 8       # requests at once that one instance is aimed at
  keep_alive: 5m  # an instance that nobody used for so long stops
"""

HANDLER_PY = '''\
"""The function `{name}`: answers JSON with JSON."""


class Handler:
    def setup(self) -> None:
        """Runs once, while the instance starts: load models and files here."""
        self.greeting = "Hello"

    def predict(self, payload: dict) -> dict:
        """Answers one invocation. Make it a generator to stream, or `async` to overlap waits."""
        return {{"message": f"{{self.greeting}}, {{payload.get('name', 'world')}}!"}}
'''

CHAT_YAML = """\
name: {name}
model:
  uri: ./model    # a folder with config.json, tokenizer.json and *.safetensors
runtime:
  engine: auto    # picks the engine by the checkpoint's config.json
  args: {{max_model_len: 2048}}
scale:
  min: 0          # nothing runs until somebody calls
  max: 1
  target: 8       # generations at once that one instance is aimed at
  keep_alive: 5m  # an instance that nobody used for so long stops
"""


class Template(StrEnum):
    HANDLER = "handler"
    CHAT = "chat"


FILES: dict[Template, dict[str, str]] = {
    Template.HANDLER: {"function.yaml": HANDLER_YAML, "handler.py": HANDLER_PY},
    Template.CHAT: {"function.yaml": CHAT_YAML},
}


def scaffold(folder: Path, template: Template) -> tuple[Path, ...]:
    """Writes a function's files into `folder`, which names it; returns what was written.

    Raises `BadRequest` when the folder's name cannot be a function's, and `Conflict` when one of
    the files is there already: nothing is overwritten, and nothing is written then.
    """
    name = folder.absolute().name
    if not NAME.fullmatch(name):
        raise BadRequest(
            f"{name!r} cannot name a function: use lower-case letters, digits and dashes",
            param="name",
        )
    targets = {folder / file: text for file, text in FILES[template].items()}
    for path in targets:
        if path.exists():
            raise Conflict(f"{path} is there already, and nothing is ever overwritten")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in targets.items():
            with path.open("x") as file:
                file.write(text.format(name=name))
    except OSError as error:
        raise BadRequest(f"cannot write {folder}: {error.strerror}", param="name") from error
    return tuple(targets)
