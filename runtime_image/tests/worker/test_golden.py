"""The wire, word for word: a change that breaks a golden file breaks a peer of another version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from stoker_runtime import contract
from stoker_runtime.streaming import line_of

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.json"))
STREAMS = {
    "LoadEvent": contract.LOAD_EVENT,
    "Frame": contract.FRAME,
    "InvokeEvent": contract.INVOKE_EVENT,
}


def golden(name):
    return (GOLDEN / f"{name}.json").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_message_reads_and_writes_as_its_golden_file(name):
    kind = getattr(contract, name)
    message = kind.model_validate_json(golden(name))
    assert json.loads(line_of(message)) == json.loads(golden(name))
    assert line_of(message).count(b"\n") == 1


@pytest.mark.parametrize("name", NAMES)
def test_every_field_is_in_its_golden_file(name):
    assert set(json.loads(golden(name))) == set(getattr(contract, name).model_fields)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_key_is_an_error(name):
    body = {**json.loads(golden(name)), "colour": "red"}
    with pytest.raises(ValidationError, match="colour"):
        getattr(contract, name).model_validate_json(json.dumps(body))


def test_every_message_has_a_golden_file():
    kinds = {kind.__name__ for kind in contract.Message.__subclasses__()}
    assert set(NAMES) == kinds


@pytest.mark.parametrize(
    ("stream", "names"),
    [
        ("LoadEvent", ["PhaseEvent", "ReadyEvent", "FailedEvent"]),
        ("Frame", ["PromptFrame", "TokenFrame", "DoneFrame", "ErrorFrame"]),
        ("InvokeEvent", ["ValueEvent", "InvokeDone", "InvokeFailed"]),
    ],
)
def test_a_streams_lines_tell_their_kind(stream, names):
    adapter: TypeAdapter[object] = STREAMS[stream]
    for name in names:
        assert type(adapter.validate_json(golden(name))) is getattr(contract, name)
