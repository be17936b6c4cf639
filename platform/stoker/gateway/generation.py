"""The token log of one generation: what the client has, and what another instance needs to go on.

Invariants (docs: live migration): a token carries (epoch, index); tokens of another epoch are
dropped; one is appended only if its index is the log's length; a new epoch starts from the log.
"""

from __future__ import annotations

from stoker.errors import InstanceLost
from stoker_runtime.contract import GenerateRequest, PromptFrame, TokenFrame


class Generation:
    """Append-only log of `(index, token, text)`, owned by the request that streams it."""

    def __init__(self, request: GenerateRequest) -> None:
        self._request = request
        self._epoch = request.epoch
        self._prompt_ids: tuple[int, ...] | None = request.prompt_ids
        self._tokens: list[int] = list(request.prefix_ids)
        self._texts: list[str] = [""] * len(request.prefix_ids)

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(self._tokens)

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def prompt_tokens(self) -> int:
        return len(self._prompt_ids or ())

    def prompted(self, frame: PromptFrame) -> None:
        """Notes the prompt as the model sees it, so that a continuation need not tokenise."""
        if frame.epoch == self._epoch:
            self._prompt_ids = frame.prompt_ids

    def append(self, frame: TokenFrame) -> bool:
        """Whether the token is new. One of another epoch, or known already, is not.

        Raises InstanceLost when the instance skipped a token: the stream cannot be continued.
        """
        if frame.epoch != self._epoch or frame.index < len(self._tokens):
            return False
        if frame.index > len(self._tokens):
            raise InstanceLost(
                f"the instance sent token {frame.index} where {len(self._tokens)} was due",
                details={"index": frame.index, "expected": len(self._tokens)},
            )
        self._tokens.append(frame.token)
        self._texts.append(frame.text)
        return True

    def advance(self) -> GenerateRequest:
        """Begins the next epoch; returns the request that continues the log on any instance."""
        self._epoch += 1
        given: dict[str, object] = {"epoch": self._epoch, "prefix_ids": tuple(self._tokens)}
        if self._prompt_ids is not None:
            given |= {"prompt_ids": self._prompt_ids, "messages": None, "prompt": None}
        return self._request.model_copy(update=given)
