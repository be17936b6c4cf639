"""Tokenizer files and chat templates, good and bad."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stoker_runtime.contract import ChatMessage
from stoker_runtime.errors import CheckpointRejected, InvalidRequest
from stoker_runtime.tokenizer import TextTokenizer

from .conftest import byte_tokenizer

TURNS = (
    ChatMessage(role="system", content="Be brief."),
    ChatMessage(role="user", content="Hi <b>"),
)


def tokenizer_with(folder: Path, template: str | None, **config: object) -> TextTokenizer:
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return TextTokenizer.load(folder)


def test_a_missing_tokenizer_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointRejected, match="save_pretrained") as caught:
        TextTokenizer.load(tmp_path)
    assert caught.value.error.code == "tokenizer_missing"


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(CheckpointRejected, match=r"tokenizer\.json") as caught:
        TextTokenizer.load(tmp_path)
    assert caught.value.error.code == "tokenizer_invalid"


def test_without_a_template_there_is_no_chat(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="/v1/completions") as caught:
        tokenizer_with(tmp_path, None).encode_chat(TURNS)
    assert caught.value.error.code == "no_chat_template"


def test_templates_have_what_they_are_used_to(tmp_path: Path) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}\n"
        "{% if m.role == 'system' %}{% continue %}{% endif %}\n"
        "    {{ m | tojson }}\n{% endfor %}\n"
        "{% if add_generation_prompt %}>{% endif %}{{ strftime_now('%%') }}"
    )
    tokenizer = tokenizer_with(tmp_path, template, bos_token={"content": "<s>"})
    assert tokenizer.render(TURNS) == '<s>    {"role": "user", "content": "Hi <b>"}\n>%'


def test_a_template_may_refuse_a_conversation(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, "{{ raise_exception('no system, please') }}")
    with pytest.raises(InvalidRequest, match="no system, please") as caught:
        tokenizer.encode_chat(TURNS)
    assert caught.value.error.code == "chat_template_failed"


@pytest.mark.parametrize(
    "attack",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.getcwd() }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(tmp_path: Path, attack: str) -> None:
    tokenizer = tokenizer_with(tmp_path, attack)
    with pytest.raises(InvalidRequest):
        tokenizer.encode_chat(TURNS)


def test_an_invalid_template_is_found_when_it_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(CheckpointRejected, match="line 2") as caught:
        tokenizer_with(tmp_path, "a\n{% if %}")
    assert caught.value.error.code == "chat_template_invalid"


@pytest.mark.parametrize(
    "template",
    ["plain", [{"name": "tools", "template": "x"}, {"name": "default", "template": "plain"}]],
)
def test_older_checkpoints_keep_the_template_in_the_config(
    tmp_path: Path, template: object
) -> None:
    assert tokenizer_with(tmp_path, None, chat_template=template).render(TURNS) == "plain"
