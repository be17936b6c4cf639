"""Every kind of predict, what it gives and how it fails."""

from __future__ import annotations

import os

import pytest

from stoker_runtime.contract import InvokeDone, InvokeFailed, ValueEvent


def only_error(events):
    [event] = events
    assert isinstance(event, InvokeFailed)
    return event.error


@pytest.mark.parametrize("kind", ["give", "give_async"])
@pytest.mark.parametrize("value", [None, 1, "é\n", [1, {"a": [True, 2.5]}], {"deep": {"er": []}}])
def test_a_returned_value_is_one_event(kinds, kind, value):
    first, done = kinds.invoke({"do": kind, "value": value})
    assert first == ValueEvent(index=0, value=value, stream=False)
    assert isinstance(done, InvokeDone)
    assert done.duration_ms > 0


@pytest.mark.parametrize("kind", ["count", "count_async"])
@pytest.mark.parametrize("to", [0, 1, 1000])
def test_yielded_values_stream_in_order(kinds, kind, to):
    *values, done = kinds.invoke({"do": kind, "to": to})
    assert values == [ValueEvent(index=i, value=i, stream=True) for i in range(to)]
    assert isinstance(done, InvokeDone)


def test_setup_gets_its_context_and_imports_see_the_environment(kinds):
    first, _ = kinds.invoke({"do": "facts"})
    assert first.value["options"] == {"greeting": "hello"}
    assert first.value["source"] == "kinds"
    assert first.value["colour_at_import"] == "blue"
    assert first.value["module"] == "stoker_function_i_1"
    assert first.value["thread"].startswith("predict")


@pytest.mark.parametrize(
    ("kind", "exception", "message"),
    [
        ("fail", "ValueError", "ValueError: the payload is wrong: hunter2"),
        ("fail_async", "LookupError", "LookupError: nothing there"),
        ("leave", "SystemExit", "SystemExit: 7"),
        ("leave_async", "SystemExit", "SystemExit: 7"),
        ("stop_iteration", "StopIteration", "StopIteration: odd"),
    ],
)
def test_a_predict_that_raises_is_an_event_and_the_instance_lives(kinds, kind, exception, message):
    error = only_error(kinds.invoke({"do": kind, "secret": "hunter2"}))
    assert (error.type, error.code, error.message) == ("handler_error", "handler_error", message)
    assert error.details["exception"] == exception
    assert f"in {kind}: " in error.details["traceback"][-1]
    assert error.details["traceback"][-1].startswith("handler.py:")
    assert kinds.invoke({"do": "give", "value": 1})[0].value == 1


def test_values_before_a_late_failure_arrive(kinds):
    first, failed = kinds.invoke({"do": "fail_late"})
    assert first == ValueEvent(index=0, value=1, stream=True)
    assert failed.error.message == "RuntimeError: broke in the middle"


def test_what_json_cannot_carry_is_named(kinds):
    error = only_error(kinds.invoke({"do": "tensor"}))
    assert error.code == "handler_error"
    assert "predict gave a dict that JSON cannot carry (it holds a torch.Tensor)" in error.message
    assert "tensor.tolist()" in error.message


def test_numpy_arrays_become_lists(kinds):
    assert kinds.invoke({"do": "array"})[0].value == [0, 1, 2]


def test_payloads_and_messages_of_user_code_stay_out_of_the_log(kinds):
    kinds.invoke({"do": "fail", "secret": "swordfish"})
    kinds.invoke({"do": "say", "text": "printed by the user"})
    log = kinds.log_path.read_text()
    assert "swordfish" not in log
    assert "ValueError" in log
    assert "printed by the user\n" in log


@pytest.mark.parametrize(("kind", "end"), [("forever", "closed"), ("forever_async", "cancelled")])
def test_leaving_a_stream_ends_its_generator(kinds, tmp_path, kind, end):
    path = tmp_path / "end"
    os.mkfifo(path)
    body = {"request_id": "q", "payload": {"do": kind, "path": str(path)}}
    with kinds.client.stream("POST", "/invoke", json=body) as answer:
        next(answer.iter_lines())
    assert path.read_text() == end


def test_leaving_before_the_first_value_cancels_an_async_predict(kinds, tmp_path, socket_to):
    started, path = tmp_path / "started", tmp_path / "end"
    os.mkfifo(started)
    os.mkfifo(path)
    with socket_to(kinds) as connection:
        connection.post("/invoke", {"do": "wait_async", "started": str(started), "path": str(path)})
        assert started.read_text() == "started"
    assert path.read_text() == "cancelled"


def test_sync_predicts_run_side_by_side(kinds, tmp_path, socket_to):
    pairs = [(tmp_path / f"started{i}", tmp_path / f"go{i}") for i in range(2)]
    for pair in pairs:
        for path in pair:
            os.mkfifo(path)
    with socket_to(kinds) as one, socket_to(kinds) as other:
        for connection, (started, go) in zip((one, other), pairs, strict=True):
            connection.post("/invoke", {"do": "meet", "started": str(started), "go": str(go)})
        for started, _ in pairs:
            assert started.read_text() == "started"
        assert kinds.client.get("/status").json()["active"] == 2
        for _, go in pairs:
            go.write_text("go")
        for connection in (one, other):
            assert connection.values() == ["go"]
