"""Hostile calls as hypothesis strategies, made from the services' own descriptors, so that a new method or field is
covered from its first day. Knows neither server nor network."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import strategies as st

from service.pb.fantail.v1 import admin_service_pb2, classification_service_pb2

CLASSIFIERS = ("refund", "topic", "urgency")
FOLDERS = (
    "refund-2",
    "topic-2",
    "broken",
    ".",
    "..",
    "../classifiers/refund",
    "/etc",
    "~",
    "a\0b",
    "x" * 300,
    "a/" * 3000,
)
OPERATOR, CALLER, HURRIED = "operator-key", "caller-key", "hurried-key"
"""Keys: with both scopes, with one, and with next to no calls a second."""

SERVED = (classification_service_pb2, admin_service_pb2, health_pb2, reflection_pb2)
METHODS: dict[str, MethodDescriptor] = {
    f"/{service.full_name}/{method.name}": method
    for each in SERVED
    for service in each.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}

SYMBOLS = (
    *("", *sorted({path.split("/")[1] for path in METHODS}), "fantail.v1.FanOutRequest", "fantail.v1.FanOutRequest.x"),
    *("fantail.v1.ClassificationService/topic", "fantail.v1.ClassificationService.FanOut", "google.protobuf.Any"),
    "google.protobuf.MessageOptions",
)
FILES = tuple(each.DESCRIPTOR.name for each in SERVED)

INT32, INT64 = 1 << 31, 1 << 63
SPELLED = (
    *("<|im_start|>", "<|im_end|>", "<|im_start|>system\n", "<|endoftext|>", "refund ", " ", "\t\n", "\0", "\x7f"),
    *("\u202e", "\u2028", "\ufeff", "\ufffd", "a\u0301", "👩‍👩‍👧", "%s{0}", "../../etc/passwd", "\r\nx-a: b", "𐀀"),
)
SIZES = (10_000, 258_000, 260_000, 1_000_000)
"""Characters: an ordinary page, either side of what is refused untokenised, and a megabyte."""

COUNTS = (255, 256, 257, 999, 1000, 1001, 3000)
"""Of one thing repeated: either side of the most conversations and the most turns."""

TIMEOUTS = (b"abc", b"", b"1", b"S", b"-1S", b"0S", b"1n", b"5m", b"99999999H", b"999999999H", b"1S ", b"\xff", b"1e9S")


@dataclass(frozen=True, slots=True)
class Input:
    """What is sent. `messages`: one, unless the client streams; `metadata`: header to value; `seconds`: until the
    caller's deadline. `raw`: write the HTTP/2 frames by hand, because gRPC's own clients refuse malformed headers."""

    method: str
    messages: tuple[bytes, ...]
    metadata: tuple[tuple[str, bytes], ...] = ()
    seconds: float = 60.0
    raw: bool = False


def inputs(revisions: Sequence[str]) -> st.SearchStrategy[Input]:
    """Calls of any method. `revisions`: such as the server knows, so that some calls name one."""
    return st.sampled_from(sorted(METHODS)).flatmap(lambda path: inputs_of(path, tuple(revisions)))


@functools.cache
def inputs_of(path: str, revisions: tuple[str, ...]) -> st.SearchStrategy[Input]:
    """Calls of one method."""
    method = METHODS[path]
    one = _payloads(method.input_type, revisions)
    sent = st.lists(one, max_size=6).map(tuple) if method.client_streaming else st.tuples(one)
    seconds = _one_in(20, st.sampled_from((0.0, 1e-9, 0.001, 0.02, 1e9)), st.just(60.0))
    gentle = st.builds(Input, st.just(path), sent, _metadata(PRINTABLE, st.nothing()), seconds)
    raw = st.builds(Input, st.just(path), sent, _metadata(st.binary(max_size=80), TIMEOUT), raw=st.just(True))
    return _one_in(8, raw, gentle)


def varied(each: Input, seed: int) -> Input:
    """The same call with other bytes, or to another method; the same for the same seed."""
    chance = random.Random(seed)
    if chance.random() < 0.2:
        method = chance.choice(sorted(METHODS))
        messages = each.messages if METHODS[method].client_streaming else (*each.messages, b"")[:1]
        return replace(each, method=method, messages=messages)
    return replace(each, messages=tuple(mutated(message, chance.getrandbits(32)) for message in each.messages))


def mutated(data: bytes, seed: int) -> bytes:
    """The bytes with some of them changed, doubled, lost or led astray; the same for the same seed."""
    chance, changed = random.Random(seed), bytearray(data)
    for _ in range(chance.randint(1, 6)):
        begin = chance.randint(0, len(changed))
        end = min(len(changed), begin + chance.randint(0, 8))
        changed[begin:end] = chance.choices(
            (
                b"",
                bytes(changed[begin:end]) * 2,
                chance.randbytes(chance.randint(1, 4)),
                bytes(each ^ (1 << chance.randint(0, 7)) for each in changed[begin:end]),
                b"\xff" * 9 + b"\x01",  # the largest varint: a length, a number or a tag
                b"\x0b" * 101,  # groups in groups, deeper than parsers go
            ),
            (6, 6, 6, 6, 2, 1),
        )[0]
    return bytes(changed[: chance.randint(0, len(changed))] if chance.random() < 0.2 else changed)


def messages(kind: Descriptor, revisions: tuple[str, ...]) -> st.SearchStrategy[Message]:
    """Messages that are well-formed and mean harm: every field, or some."""
    made: type[Message] = GetMessageClass(kind)
    fields = {field.name: _values(field, revisions) for field in kind.fields}
    some, whole = st.fixed_dictionaries({}, optional=fields), st.fixed_dictionaries(fields)
    return _one_in(6, some, whole).map(lambda values: made(**values))


def _payloads(kind: Descriptor, revisions: tuple[str, ...]) -> st.SearchStrategy[bytes]:
    written = messages(kind, revisions).map(lambda message: message.SerializeToString())
    spoilt = st.builds(mutated, written, st.integers(0, 1 << 32)) | st.binary(max_size=60)
    return _one_in(3, spoilt, written)


def _values(field: FieldDescriptor, revisions: tuple[str, ...]) -> st.SearchStrategy[Any]:
    one = _one(field, revisions)
    if not field.is_repeated:
        return one
    names = field.type == FieldDescriptor.TYPE_STRING
    some = _one_in(4, st.lists(one, max_size=4), st.lists(one, min_size=1, max_size=3, unique_by=str if names else id))
    return _one_in(100, st.builds(lambda each, count: [each] * count, one, st.sampled_from(COUNTS)), some)


def _one(field: FieldDescriptor, revisions: tuple[str, ...]) -> st.SearchStrategy[Any]:
    match field.type:
        case FieldDescriptor.TYPE_MESSAGE:
            assert field.message_type is not None
            return messages(field.message_type, revisions)
        case FieldDescriptor.TYPE_ENUM:
            assert field.enum_type is not None
            said = st.sampled_from(sorted(field.enum_type.values_by_number)[1:])
            return _one_in(12, st.integers(-INT32, INT32 - 1), said)
        case FieldDescriptor.TYPE_INT32:
            return st.sampled_from((0, 1, 50, 100, -1, INT32 - 1, -INT32)) | st.integers(-INT32, INT32 - 1)
        case FieldDescriptor.TYPE_INT64:
            return st.sampled_from((0, 1, 2, -1, INT64 - 1, -INT64)) | st.integers(-INT64, INT64 - 1)
        case FieldDescriptor.TYPE_STRING:
            return _texts(field.name, revisions)
    raise NotImplementedError(f"{field.full_name}: say here what is hostile in its type")


def _texts(name: str, revisions: tuple[str, ...]) -> st.SearchStrategy[str]:
    """Any text; for fields that name something mostly what there is."""
    known = {
        **dict.fromkeys(("classifier", "classifiers", "names"), CLASSIFIERS),
        **dict.fromkeys(("revision", "shadow_revisions"), revisions),
        "folder": FOLDERS,
        **dict.fromkeys(("service", "file_containing_symbol", "containing_type"), SYMBOLS),
        "file_by_filename": FILES,
    }.get(name)
    any_text = _one_in(1000, HUGE, TEXT)
    return any_text if known is None else _one_in(6, any_text, st.sampled_from(known))


def _metadata(values: st.SearchStrategy[bytes], timeouts: st.SearchStrategy[bytes]) -> st.SearchStrategy[Any]:
    """Headers: mostly with a key that may do everything, so that calls get past it."""
    keys = st.sampled_from([f"Bearer {key}".encode() for key in (*[OPERATOR] * 12, CALLER, CALLER, HURRIED, "wrong")])
    hostile = st.tuples(st.sampled_from(HEADERS) | NAMES, values)
    binary = st.tuples(NAMES.map(lambda name: f"{name}-bin"), st.binary(max_size=40))
    timeout = st.tuples(st.just("grpc-timeout"), timeouts)
    return st.builds(
        lambda key, more: (*(("authorization", each) for each in key), *more),
        _one_in(20, st.lists(values, max_size=2), keys.map(lambda key: [key])),
        st.lists(hostile | binary | timeout, max_size=3),
    )


def _one_in(times: int, rare: st.SearchStrategy[Any], usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly `usual`; about one in so many times `rare`."""
    return st.integers(0, times - 1).flatmap(lambda drawn: rare if drawn == times // 2 else usual)


ODD = st.lists(st.text(max_size=8) | st.sampled_from(SPELLED), min_size=1, max_size=8).map("".join)
TEXT = _one_in(8, ODD, st.builds("{}{}".format, st.sampled_from(("where is my refund??", "hi", "ok thanks")), ODD))
HUGE = st.builds(lambda piece, size: (piece * size)[:size], st.sampled_from(SPELLED), st.sampled_from(SIZES))
PRINTABLE = st.text([chr(each) for each in range(0x20, 0x7F)], max_size=80).map(str.encode) | st.sampled_from(
    (
        b"a" * 64,
        b"a" * 65,
        b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01",
        b"ff-" + b"0" * 32 + b"-" + b"0" * 16 + b"-00",
    )
)
TIMEOUT = st.sampled_from(TIMEOUTS)
HEADERS = ("x-request-id", "x-request-id", "traceparent", "traceparent", "tracestate", "user-agent", "authorization")
NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.", min_size=1, max_size=12).map(lambda name: f"x{name}")
