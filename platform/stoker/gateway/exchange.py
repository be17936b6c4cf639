"""The three conversations a gateway has with an instance, each on one route of the contract."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, Protocol, TypeVar

import orjson

from stoker.domain import RequestId
from stoker.gateway.generation import Generation
from stoker_runtime.contract import (
    FRAME,
    INVOKE_EVENT,
    DoneFrame,
    EmbedRequest,
    EmbedResponse,
    ErrorFrame,
    Frame,
    GenerateRequest,
    InvokeDone,
    InvokeEvent,
    InvokeFailed,
    PromptFrame,
    WorkerError,
)

E = TypeVar("E")


class Exchange(Protocol, Generic[E]):
    """One request to an instance and how to read its newline-delimited answer of events `E`.

    `repeatable`: sending it to a second instance, when the first died before it answered, does
    nothing twice that anybody could notice.
    """

    path: ClassVar[str]
    repeatable: ClassVar[bool]

    def body(self) -> bytes:
        """The JSON to send."""
        ...

    def decode(self, line: bytes) -> E:
        """One event. Raises ValidationError when the line is not one."""
        ...

    def begins(self, event: E) -> bool:
        """Whether the event is the first that a client could see: startup ends with it."""
        ...

    def ends(self, event: E) -> bool:
        """Whether the event is the last of its stream."""
        ...

    def fault(self, event: E) -> WorkerError | None:
        """What went wrong, when that is what the event says."""
        ...

    def again(self) -> None:
        """Prepares to be sent to another instance."""
        ...

    @property
    def prompt_tokens(self) -> int:
        """Tokens read, as far as is known; predictions of `prefill` learn from it."""
        ...


class Generate:
    """POST /generate: tokens, logged as they come."""

    path: ClassVar[str] = "/generate"
    repeatable: ClassVar[bool] = True

    def __init__(self, request: GenerateRequest) -> None:
        self._request = request
        self.generation = Generation(request)

    def body(self) -> bytes:
        return self._request.model_dump_json(exclude_defaults=True).encode()

    def decode(self, line: bytes) -> Frame:
        frame = FRAME.validate_json(line)
        if isinstance(frame, PromptFrame):
            self.generation.prompted(frame)
        return frame

    def begins(self, event: Frame) -> bool:
        return not isinstance(event, PromptFrame)

    def ends(self, event: Frame) -> bool:
        return isinstance(event, DoneFrame | ErrorFrame)

    def fault(self, event: Frame) -> WorkerError | None:
        return event.error if isinstance(event, ErrorFrame) else None

    def again(self) -> None:
        self._request = self.generation.advance()

    @property
    def prompt_tokens(self) -> int:
        return self.generation.prompt_tokens


class Embed:
    """POST /embed: one response, read as a stream of one event."""

    path: ClassVar[str] = "/embed"
    repeatable: ClassVar[bool] = True

    def __init__(self, request: EmbedRequest) -> None:
        self._request = request
        self._prompt_tokens = 0

    def body(self) -> bytes:
        return self._request.model_dump_json(exclude_defaults=True).encode()

    def decode(self, line: bytes) -> EmbedResponse:
        response = EmbedResponse.model_validate_json(line)
        self._prompt_tokens = response.prompt_tokens
        return response

    def begins(self, event: EmbedResponse) -> bool:  # noqa: ARG002
        return True

    def ends(self, event: EmbedResponse) -> bool:  # noqa: ARG002
        return True

    def fault(self, event: EmbedResponse) -> WorkerError | None:  # noqa: ARG002
        return None

    def again(self) -> None:
        return

    @property
    def prompt_tokens(self) -> int:
        return self._prompt_tokens


class Invoke:
    """POST /invoke: values of a user's handler, whose side effects must not happen twice."""

    path: ClassVar[str] = "/invoke"
    repeatable: ClassVar[bool] = False

    def __init__(self, request_id: RequestId, payload: Any) -> None:
        self._request_id = request_id
        self._payload = payload

    def body(self) -> bytes:
        return orjson.dumps({"request_id": self._request_id, "payload": self._payload})

    def decode(self, line: bytes) -> InvokeEvent:
        return INVOKE_EVENT.validate_json(line)

    def begins(self, event: InvokeEvent) -> bool:  # noqa: ARG002
        return True

    def ends(self, event: InvokeEvent) -> bool:
        return isinstance(event, InvokeDone | InvokeFailed)

    def fault(self, event: InvokeEvent) -> WorkerError | None:
        return event.error if isinstance(event, InvokeFailed) else None

    def again(self) -> None:
        return

    @property
    def prompt_tokens(self) -> int:
        return 0
