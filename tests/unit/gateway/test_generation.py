"""The token log: once, in order, of the right epoch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.errors import InstanceLost
from stoker.gateway.generation import Generation
from stoker_runtime.contract import GenerateRequest, PromptFrame, TokenFrame


def frame(index: int, *, epoch: int = 0) -> TokenFrame:
    return TokenFrame(epoch=epoch, index=index, token=100 + index, text=f"{index} ")


def generation() -> Generation:
    return Generation(GenerateRequest(request_id="r", prompt="p"))


def test_tokens_are_appended_in_order() -> None:
    log = generation()
    assert log.append(frame(0))
    assert log.append(frame(1))
    assert (log.tokens, log.text, len(log)) == ((100, 101), "0 1 ", 2)


def test_a_known_token_is_dropped() -> None:
    log = generation()
    log.append(frame(0))
    assert not log.append(frame(0))
    assert log.tokens == (100,)


def test_a_skipped_token_is_a_loss() -> None:
    log = generation()
    with pytest.raises(InstanceLost, match="token 1 where 0 was due"):
        log.append(frame(1))
    assert len(log) == 0


def test_a_new_epoch_continues_the_log_and_drops_the_old() -> None:
    log = generation()
    log.prompted(PromptFrame(epoch=0, prompt_ids=(1, 2, 3)))
    log.append(frame(0))
    request = log.advance()
    assert (request.epoch, request.prompt_ids, request.prefix_ids) == (1, (1, 2, 3), (100,))
    assert request.prompt is None
    assert GenerateRequest.model_validate(request.model_dump()) == request
    assert not log.append(frame(1, epoch=0))
    assert log.append(frame(1, epoch=1))


def test_before_the_prompt_is_known_the_request_is_sent_again_as_it_was() -> None:
    request = generation().advance()
    assert (request.prompt, request.prompt_ids, request.epoch) == ("p", None, 1)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2)), max_size=40))
def test_whatever_arrives_the_log_is_gapless(frames: list[tuple[int, int]]) -> None:
    log = generation()
    for index, epoch in frames:
        try:
            taken = log.append(frame(index, epoch=epoch))
        except InstanceLost:
            taken = False
            assert (index > len(log), epoch) == (True, 0)
        if taken:
            assert (index, epoch) == (len(log) - 1, 0)
    assert log.tokens == tuple(100 + index for index in range(len(log)))
