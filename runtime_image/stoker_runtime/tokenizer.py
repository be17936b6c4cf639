"""Text to token ids and back by the `tokenizers` package alone; and the chat template."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from stoker_runtime.contract import ChatMessage
from stoker_runtime.detokenizer import Detokenizer, detokenizer_factory
from stoker_runtime.errors import CheckpointRejected, InvalidRequest
from stoker_runtime.weights import read_json

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True, slots=True)
class TextTokenizer:
    """A checkpoint's tokenizer; safe to share between threads."""

    _tokenizer: Tokenizer
    _template: jinja2.Template | None
    _special: dict[str, str]
    _new_detokenizer: Callable[[], Detokenizer]

    @classmethod
    def load(cls, checkpoint: Path) -> TextTokenizer:
        """Reads `tokenizer.json` and the chat template beside it.

        Raises:
            CheckpointRejected: the tokenizer is missing or invalid, or the template is.
        """
        tokenizer = _read_tokenizer(checkpoint / TOKENIZER_FILE)
        config_path = checkpoint / CONFIG_FILE
        config = read_json(config_path) if config_path.exists() else {}
        return cls(
            tokenizer,
            _compile(_template_source(checkpoint, config)),
            {name: _content(config.get(name)) for name in SPECIAL_TOKENS},
            detokenizer_factory(tokenizer),
        )

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """A plain prompt, with the special tokens that the tokenizer puts around one."""
        return list(self._tokenizer.encode(text, add_special_tokens=True).ids)

    def encode_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """A conversation, rendered by the chat template up to where the answer begins.

        Raises:
            InvalidRequest: there is no template, or it refuses these messages.
        """
        return list(self._tokenizer.encode(self.render(messages), add_special_tokens=False).ids)

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """The conversation as the text that the model was trained on; raises as encode_chat."""
        if self._template is None:
            raise InvalidRequest(
                "this checkpoint has no chat template; send a plain `prompt` to /v1/completions",
                code="no_chat_template",
                param="messages",
            )
        turns = [message.model_dump(exclude_none=True) for message in messages]
        try:
            return self._template.render(
                messages=turns, add_generation_prompt=True, **self._special
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise InvalidRequest(
                f"the checkpoint's chat template refuses these messages: {error}",
                code="chat_template_failed",
                param="messages",
            ) from error

    def detokenizer(self) -> Detokenizer:
        """A new generation's incremental decoder."""
        return self._new_detokenizer()

    def spell(self, token: int) -> str:
        """One token on its own, special ones included; half a character becomes U+FFFD."""
        return str(self._tokenizer.decode([token], skip_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of all ids at once, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def _read_tokenizer(path: Path) -> Tokenizer:
    if not path.exists():
        raise CheckpointRejected(
            f"the checkpoint {path.parent.name} has no {TOKENIZER_FILE}; save its tokenizer with "
            "save_pretrained (a fast tokenizer writes this file) and push it again",
            code="tokenizer_missing",
            param=TOKENIZER_FILE,
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the native parser raises nothing more exact
        raise CheckpointRejected(
            f"{TOKENIZER_FILE} cannot be read: {error}; fetch the checkpoint again",
            code="tokenizer_invalid",
            param=TOKENIZER_FILE,
        ) from error


def _template_source(checkpoint: Path, config: dict[str, Any]) -> str | None:
    path = checkpoint / TEMPLATE_FILE
    if path.exists():
        return path.read_text()
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _compile(source: str | None) -> jinja2.Template | None:
    if source is None:
        return None
    # A checkpoint is foreign: its template runs in the sandbox and cannot change what it is given.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _local_time
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise CheckpointRejected(
            f"the chat template is invalid in line {error.lineno}: {error.message}; "
            f"correct {TEMPLATE_FILE} and push the checkpoint again",
            code="chat_template_invalid",
            param=TEMPLATE_FILE,
        ) from error


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> str:
    raise jinja2.TemplateError(message)


def _local_time(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def _content(token: Any) -> str:
    """Special tokens are written as text or as an object with `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""
