"""The platform's HTTP API as Python calls: one method a route, errors as the errors tree."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import httpx

from stoker.client.failure import error_from
from stoker.errors import InstanceLost, PlatformNotReachable

if TYPE_CHECKING:
    from stoker.domain import Timeline

Json = dict[str, Any]

CONNECT_TIMEOUT_S = 5.0
# A held request sends nothing until its instance is ready: longer than any `startup.timeout`
# that makes sense, so that the platform's own bound is the one that speaks.
READ_TIMEOUT_S = 1800.0
MAX_EVENT_BYTES = 16 << 20  # of one line of a stream


@dataclass(frozen=True, slots=True)
class Deployed:
    """What a deploy answered; `created` is false when the same content was deployed before."""

    body: Json
    created: bool


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload that the platform is ready to take, or the artifact that made it needless."""

    id: str | None
    missing: tuple[str, ...]
    artifact: Json | None


@dataclass(frozen=True, slots=True)
class Reply:
    """The head of a reply to an invocation."""

    request_id: str
    cold: bool
    revision: str | None
    media_type: str


class Platform:
    """A platform at `url`. Every method raises `PlatformNotReachable` when nothing answers there,
    and the member of the errors tree that the platform names when it refuses.

    Closing a stream (or an exception, also KeyboardInterrupt, within it) cancels the request.
    """

    def __init__(self, url: str, *, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            transport=transport,
            timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            trust_env=False,  # a proxy never stands between a user and their own machine
            # Certificates take longer to read than most commands to run: only where they count.
            verify=self.url.startswith("https:"),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # --- functions ---------------------------------------------------------------------------

    def functions(self) -> list[Json]:
        return list(self._json("GET", "/v1/functions")["functions"])

    def function(self, name: str) -> Json:
        return self._json("GET", _path("functions", name))

    def deploy(self, name: str, manifest: Json) -> Deployed:
        with self._open("PUT", _path("functions", name), json=manifest) as response:
            response.read()
            return Deployed(_body(response), created=response.status_code == httpx.codes.CREATED)

    def delete(self, name: str) -> None:
        with self._open("DELETE", _path("functions", name)):
            return

    def scale(self, name: str, replicas: int) -> Json:
        return self._json("POST", _path("functions", name, "scale"), json={"replicas": replicas})

    def prewarm(self, name: str) -> Json:
        return self._json("POST", _path("functions", name, "prewarm"), json={})

    def instances(self, name: str) -> list[Json]:
        return list(self._json("GET", _path("functions", name, "instances"))["instances"])

    def logs(self, name: str, *, follow: bool = False) -> Iterator[str]:
        """Lines of the function's instances; with `follow`, until the caller stops."""
        params = {"follow": "1"} if follow else None
        with self._open("GET", _path("functions", name, "logs"), params=params) as response:
            yield from _lines(response)

    # --- requests ----------------------------------------------------------------------------

    @contextmanager
    def invoke(self, name: str, payload: object) -> Iterator[tuple[Reply, Iterator[Any]]]:
        """Invokes a function; yields the reply's head and its values, one unless it streams."""
        path = _path("functions", name, "invocations")
        with self._open("POST", path, json=payload) as response:
            yield _reply(response), _values(response)

    @contextmanager
    def chat(self, body: Json) -> Iterator[tuple[Reply, Iterator[Json]]]:
        """Streams a chat completion; yields the reply's head and OpenAI's chunks."""
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        with self._open("POST", "/v1/chat/completions", json=body) as response:
            yield _reply(response), _events(response)

    def startup(self, request_id: str) -> Timeline:
        """Where the request's time went until its first token. Raises RequestNotFound."""
        from stoker.client.timeline import timeline_from  # brings Pydantic, which most calls spare

        return timeline_from(self._json("GET", _path("requests", request_id, "startup")))

    # --- checkpoints -------------------------------------------------------------------------

    def checkpoints(self) -> list[Json]:
        return list(self._json("GET", "/v1/checkpoints")["checkpoints"])

    def checkpoint(self, reference: str) -> Json:
        return self._json("GET", _path("checkpoints", reference))

    def delete_checkpoint(self, reference: str) -> Json:
        return dict(self._json("DELETE", _path("checkpoints", reference))["artifact"])

    def verify_checkpoint(self, reference: str) -> Iterator[Json]:
        """Yields progress, at last `{"artifact": ...}`; raises what was found wrong."""
        yield from self._progress(_path("checkpoints", reference, "verify"), {})

    def collect_checkpoints(self, *, dry_run: bool) -> list[Json]:
        body = self._json("POST", "/v1/checkpoint-collections", json={"dry_run": dry_run})
        return list(body["removed"])

    def open_upload(self, files: list[Json], kind: str, name: str | None) -> Upload:
        """Offers files (`path`, `size_bytes`, `blake3`); the answer says which to send. When all
        are known, the artifact gets `name` at once."""
        offer = {"files": files, "kind": kind, "name": name}
        body = self._json("POST", "/v1/uploads", json=offer)
        return Upload(body.get("upload_id"), tuple(body.get("missing", ())), body.get("artifact"))

    def send_file(self, upload: str, path: str, content: Iterable[bytes], size_bytes: int) -> None:
        route = _path("uploads", upload, "files", *path.split("/"))
        # With its length declared the body is not sent in chunks, so a cut-off one is noticed.
        headers = {"content-length": str(size_bytes), "content-type": "application/octet-stream"}
        with self._open("PUT", route, content=content, headers=headers):
            return

    def commit(self, upload: str, name: str | None) -> Iterator[Json]:
        """Makes an artifact of what was sent; yields progress, at last `{"artifact": ...}`."""
        yield from self._progress(_path("uploads", upload, "commit"), {"name": name})

    def _progress(self, route: str, body: Json) -> Iterator[Json]:
        """The events of long work, until its outcome."""
        with self._open("POST", route, json=body) as response:
            for line in _lines(response):
                event = json.loads(line)
                if "error" in event:
                    raise error_from(event)
                yield event

    # --- nodes -------------------------------------------------------------------------------

    def nodes(self) -> list[Json]:
        return list(self._json("GET", "/v1/nodes")["nodes"])

    def cache(self, node: str) -> Json:
        return self._json("GET", _path("nodes", node, "cache"))

    def prefetch(self, node: str, reference: str) -> None:
        with self._open("POST", _path("nodes", node, "cache", reference, "prefetch")):
            return

    def evict(self, node: str, reference: str) -> None:
        with self._open("POST", _path("nodes", node, "cache", reference, "evict")):
            return

    def pin(self, node: str, reference: str, tier: str) -> None:
        route = _path("nodes", node, "cache", reference, "pin")
        with self._open("PUT", route, json={"tier": tier}):
            return

    def unpin(self, node: str, reference: str) -> None:
        with self._open("DELETE", _path("nodes", node, "cache", reference, "pin")):
            return

    def verify_copy(self, node: str, reference: str) -> Iterator[Json]:
        """Yields progress, at last `{"artifact": ...}`; raises what was found wrong."""
        yield from self._progress(_path("nodes", node, "cache", reference, "verify"), {})

    # --- the platform ------------------------------------------------------------------------

    def ready(self, *, warm: bool = False) -> Json:
        """What /readyz says; with `warm` it answers once the warm pool is full."""
        return self._json("GET", "/readyz", params={"warm": "1"} if warm else None)

    def metrics(self) -> str:
        with self._open("GET", "/metrics") as response:
            response.read()
            return response.text

    # --- the wire ----------------------------------------------------------------------------

    def _json(self, method: str, path: str, **options: Any) -> Json:
        with self._open(method, path, **options) as response:
            response.read()
            return _body(response)

    @contextmanager
    def _open(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        """One exchange; the body is the caller's to read. Raises for any status above 299."""
        try:
            with self._http.stream(method, path, **options) as response:
                if not response.is_success:
                    response.read()
                    raise _refusal(response)
                yield response
        except httpx.ConnectError as error:
            raise PlatformNotReachable(f"nothing answers at {self.url}: {error}") from error
        except httpx.ConnectTimeout as error:
            raise PlatformNotReachable(
                f"{self.url} did not accept a connection within {CONNECT_TIMEOUT_S:g} s"
            ) from error
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise InstanceLost(f"{self.url} broke off the exchange: {reason}") from error
        except httpx.InvalidURL as error:
            raise PlatformNotReachable(f"{self.url!r} is not an address: {error}") from error


def _path(*parts: str) -> str:
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def _body(response: httpx.Response) -> Json:
    try:
        body = response.json()
    except ValueError:
        body = response.text
    if not isinstance(body, dict):
        raise error_from(body, status=response.status_code)
    return body


def _refusal(response: httpx.Response) -> Exception:
    try:
        body: object = response.json()
    except ValueError:
        body = response.text
    after = response.headers.get("retry-after", "")
    return error_from(
        body,
        status=response.status_code,
        retry_after_s=float(after) if after.replace(".", "", 1).isdigit() else None,
    )


def _reply(response: httpx.Response) -> Reply:
    headers: Mapping[str, str] = response.headers
    return Reply(
        request_id=headers.get("x-request-id", ""),
        cold=headers.get("x-cold-start", "").lower() in {"true", "1"},
        revision=headers.get("x-function-revision"),
        media_type=headers.get("content-type", "").partition(";")[0],
    )


def _lines(response: httpx.Response) -> Iterator[str]:
    """Lines as they arrive, split at LF alone: JSON text may hold Unicode line separators."""
    pending = b""
    for piece in response.iter_raw():
        *whole, pending = (pending + piece).split(b"\n")
        if len(pending) > MAX_EVENT_BYTES:
            raise InstanceLost(f"a line of the stream is longer than {MAX_EVENT_BYTES} bytes")
        for line in whole:
            yield line.decode().rstrip("\r")
    if pending:
        yield pending.decode()


def _events(response: httpx.Response) -> Iterator[Json]:
    """JSON of server-sent events until `[DONE]`; comments (`: ping`) pass by in silence."""
    for line in _lines(response):
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        event = json.loads(data)
        match event:
            # The request's id tells the platform's error from a value that looks like one.
            case {"error": {"message": _, "request_id": _}}:
                raise error_from(event)
        yield event
    raise InstanceLost("the stream ended before its [DONE]")


def _values(response: httpx.Response) -> Iterator[Any]:
    match response.headers.get("content-type", "").partition(";")[0]:
        case "text/event-stream":
            yield from _events(response)
        case "application/x-ndjson":
            for line in _lines(response):
                yield json.loads(line)
        case _:
            response.read()
            yield response.json()
