"""One gRPC call as HTTP/2 frames written by hand (RFC 9113, RFC 7541), with headers that no gRPC client would send."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
STREAM = 1
MOST_FRAME_BYTES = 16_384
WINDOW = (1 << 31) - 1

NO_HEADER_TABLE, WHOLE_WINDOW = struct.pack(">HI", 1, 0), struct.pack(">HI", 4, WINDOW)
"""Settings: headers come back spelled out, so that none has to be remembered; answers of any size may come at once."""

STATUS = b"grpc-status"
DETAILS = b"grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Reply:
    """How a call ended: the number of the gRPC status as text, "reset", "goaway" or "closed"; what came before that."""

    how: str
    messages: tuple[bytes, ...] = ()
    trailers: bytes = b""


async def call(port: int, path: str, metadata: Iterable[tuple[bytes, bytes]], messages: Sequence[bytes]) -> Reply:
    """Make a call on a connection of its own.

    A call that is not streamed needs one message: grpc.aio drops a call that is ended before a whole message came, and
    says nothing until its caller gives up.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"".join(_request(path, metadata, messages)))
        return await _reply(reader)
    except (ConnectionError, asyncio.IncompleteReadError):
        return Reply("closed")
    finally:
        writer.close()


def _request(path: str, metadata: Iterable[tuple[bytes, bytes]], messages: Sequence[bytes]) -> Iterable[bytes]:
    headers = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *metadata,
    ]
    yield PREFACE + _frame(SETTINGS, 0, 0, NO_HEADER_TABLE + WHOLE_WINDOW) + _frame(SETTINGS, ACK, 0, b"")
    yield _frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW - 65_535))
    yield _frame(HEADERS, END_HEADERS, STREAM, b"".join(_literal(*each) for each in headers))
    body = b"".join(struct.pack(">BI", 0, len(each)) + each for each in messages)
    for start in range(0, len(body), MOST_FRAME_BYTES):
        yield _frame(DATA, 0, STREAM, body[start : start + MOST_FRAME_BYTES])
    yield _frame(DATA, END_STREAM, STREAM, b"")


async def _reply(reader: asyncio.StreamReader) -> Reply:
    body = b""
    while True:
        head = await reader.readexactly(9)
        kind, flags, payload = head[3], head[4], await reader.readexactly(int.from_bytes(head[:3], "big"))
        if kind == DATA:
            body += payload
        if kind == HEADERS and flags & END_STREAM:
            return Reply(_status(payload), tuple(_messages(body)), payload)
        if kind in (RST_STREAM, GOAWAY):
            return Reply("reset" if kind == RST_STREAM else "goaway", tuple(_messages(body)))


def _messages(body: bytes) -> Iterable[bytes]:
    """The whole messages in it; each comes after a byte of flags and its length."""
    while len(body) >= 5:
        end = 5 + int.from_bytes(body[1:5], "big")
        yield body[5:end]
        body = body[end:]


def _status(block: bytes) -> str:
    """The value of the header `grpc-status`, which stands there plainly because there is no table."""
    place = block.index(STATUS) + len(STATUS)
    return block[place + 1 : place + 1 + block[place]].decode()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _literal(name: bytes, value: bytes) -> bytes:
    """A header that is neither indexed nor compressed, RFC 7541 section 6.2.2."""
    return b"\0" + _length(name) + name + _length(value) + value


def _length(text: bytes) -> bytes:
    """RFC 7541 section 5.1 with a prefix of seven bits."""
    rest = len(text) - 127
    if rest < 0:
        return bytes([len(text)])
    encoded = bytearray([127])
    while rest >= 128:
        encoded.append(rest % 128 + 128)
        rest //= 128
    return bytes([*encoded, rest])
