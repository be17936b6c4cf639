"""A connection against a real socket whose other side says whatever the test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from stoker.gateway import connection as module
from stoker.gateway.connection import MAX_BUFFERED_BYTES, Connection, ConnectionBroken, connect

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
WHOLE = HEAD + b"content-length: 5\r\n\r\nwhole"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(socket: Path, handler: Handler) -> AsyncIterator[Path]:
    """An instance at `socket`; at the end its other sides have all left."""
    handling: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handling.add(asyncio.create_task(handle(reader, writer)))

    async with await asyncio.start_unix_server(accept, str(socket)):
        yield socket
    await asyncio.gather(*handling)


@asynccontextmanager
async def connected(folder: Path, handler: Handler) -> AsyncIterator[Connection]:
    async with listening(folder / "instance.sock", handler) as socket:
        connection = await connect(socket)
        try:
            yield connection
        finally:
            connection.close()


async def request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head + await reader.readexactly(length)


def saying(*pieces: bytes, then_close: bool = False) -> Handler:
    """Answers each request with the pieces, in writes of their own."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await request(reader)
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if then_close:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # the other side left

    return handler


async def answer(connection: Connection) -> tuple[int, bytes]:
    status = await connection.post("/generate", b"{}")
    body = b""
    while piece := await connection.read():
        body += piece
    return status, body


async def until_broken(connection: Connection) -> bytes:
    body = b""
    try:
        await connection.post("/generate", b"{}")
        while piece := await connection.read():
            body += piece
    except ConnectionBroken:
        return body
    pytest.fail("the answer came to its end")


async def test_the_request_is_what_http_wants(tmp_path: Path) -> None:
    heard: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await request(reader))
        writer.write(WHOLE)

    async with connected(tmp_path, handler) as connection:
        assert await connection.post("/generate", b'{"a":1}') == 200
    head, _, body = heard[0].partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"POST /generate HTTP/1.1",
        b"host: instance",
        b"content-type: application/json",
        b"content-length: 7",
    ]
    assert body == b'{"a":1}'


@pytest.mark.parametrize(
    "said",
    [
        [WHOLE],
        [bytes([byte]) for byte in WHOLE],
        [CHUNKED, b"2\r\nwh\r\n", b"3\r\nole\r\n", b"0\r\n\r\n"],
        [bytes([byte]) for byte in CHUNKED + b"5\r\nwhole\r\n0\r\n\r\n"],
        [b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n", WHOLE],
        [b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED + b"5\r\nwhole\r\n0\r\n\r\n"],
    ],
    ids=["whole", "byte by byte", "chunked", "chunked byte by byte", "hints first", "continue"],
)
async def test_an_answer_is_read_however_it_comes_and_the_next_too(
    tmp_path: Path, said: list[bytes]
) -> None:
    async with connected(tmp_path, saying(*said)) as connection:
        for _ in range(3):
            assert await answer(connection) == (200, b"whole")
            assert connection.reusable


async def test_an_answer_without_a_length_ends_with_the_connection(tmp_path: Path) -> None:
    said = saying(b"HTTP/1.0 200 OK\r\n\r\n", b"who", b"le", then_close=True)
    async with connected(tmp_path, said) as connection:
        assert await answer(connection) == (200, b"whole")
        assert not connection.reusable


async def test_a_connection_that_the_instance_closes_is_not_reused(tmp_path: Path) -> None:
    said = HEAD + b"connection: close\r\ncontent-length: 0\r\n\r\n"
    async with connected(tmp_path, saying(said)) as connection:
        assert await answer(connection) == (200, b"")
        assert not connection.reusable


@pytest.mark.parametrize(
    ("said", "came"),
    [
        (b"", b""),
        (HEAD, b""),
        (HEAD + b"content-length: 9\r\n\r\nhal", b"hal"),
        (CHUNKED + b"3\r\nhal\r\n", b"hal"),
        (CHUNKED + b"3\r\nhal\r\nno size\r\n", b"hal"),
        (b"220 mail.example ESMTP\r\n", b""),
    ],
    ids=["nothing", "half a head", "half a body", "half of chunks", "no chunk", "no HTTP"],
)
async def test_what_breaks_off_is_read_and_then_an_error(
    tmp_path: Path, said: bytes, came: bytes
) -> None:
    async with connected(tmp_path, saying(said, then_close=True)) as connection:
        assert await until_broken(connection) == came
        assert not connection.reusable
        with pytest.raises(ConnectionBroken):
            await connection.post("/generate", b"{}")


async def test_an_instance_that_speaks_unasked_is_not_used_again(tmp_path: Path) -> None:
    async with connected(tmp_path, saying(WHOLE + WHOLE)) as connection:
        assert (await answer(connection))[1].startswith(b"whole")
        assert not connection.reusable


async def test_what_nobody_reads_stays_with_the_instance(tmp_path: Path) -> None:
    size = 64 * MAX_BUFFERED_BYTES
    blocked, sent = asyncio.Event(), asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(HEAD + b"content-length: %d\r\n\r\n" % size + bytes(size))
        asyncio.get_running_loop().call_soon(blocked.set)
        await writer.drain()
        sent.set()
        await reader.read()

    async with connected(tmp_path, handler) as connection:
        assert await connection.post("/generate", b"{}") == 200
        await blocked.wait()
        for _ in range(100):
            await asyncio.sleep(0)
        assert not sent.is_set()
        assert connection._buffered_bytes < 2 * MAX_BUFFERED_BYTES
        total = 0
        while piece := await connection.read():
            total += len(piece)
        assert total == size
        await sent.wait()


async def test_a_silent_instance_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENCE_TIMEOUT_S", 0.01)
    async with connected(tmp_path, saying(CHUNKED)) as connection:
        assert await connection.post("/generate", b"{}") == 200
        with pytest.raises(ConnectionBroken, match="said nothing"):
            await connection.read()
        assert not connection.reusable


async def test_closing_early_ends_it_for_the_instance(tmp_path: Path) -> None:
    left = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(CHUNKED)
        assert await reader.read() == b""
        left.set()

    async with connected(tmp_path, handler) as connection:
        await connection.post("/generate", b"{}")
        assert not connection.reusable
        connection.close()
        await left.wait()


async def test_a_socket_that_nobody_listens_on(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await connect(tmp_path / "nobody.sock")
