"""The messages of call forwarding: what goes in comes out, and what is no message is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.cni.skel import Response
from cnvnet.launch.protocol import (
    DESCRIPTORS,
    ForwardedCall,
    MalformedMessage,
    decode_call,
    decode_response,
    encode_call,
    encode_response,
    encode_unsupported,
    forwarded,
    framed,
)

# What an environment can hold: text, and bytes that are no UTF-8 as surrogateescape keeps them.
VALUE = st.binary(max_size=20).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
CALL = b'{"v":1,"argv0":"static-ip","fds":["self","mnt","root"],"env":{"CNI_COMMAND":"ADD"},"stdin":"e30="}'


@given(VALUE, st.dictionaries(VALUE, VALUE), st.binary(), st.sets(st.sampled_from(DESCRIPTORS)))
def test_a_call_arrives_as_it_was_sent(argv0: str, env: dict[str, str], stdin: bytes, fds: set[str]) -> None:
    call = ForwardedCall(argv0, env, stdin, tuple(name for name in DESCRIPTORS if name in fds))
    assert decode_call(json.loads(encode_call(call))) == call


@given(st.integers(0, 255), st.binary(), st.binary())
def test_an_answer_arrives_as_it_was_sent(code: int, stdout: bytes, stderr: bytes) -> None:
    response = Response(code, stdout, stderr)
    assert decode_response(encode_response(response)) == response


def test_the_request_looks_as_the_protocol_says() -> None:
    assert encode_call(ForwardedCall("static-ip", {"CNI_COMMAND": "ADD"}, b"{}")) == CALL


def test_a_message_has_its_length_in_front() -> None:
    assert framed(b"{}") == b"\0\0\0\2{}"


def test_only_what_the_plugins_read_goes_along() -> None:
    env = {
        "CNI_ARGS": "a=b",
        "CNVNET_RUNDIR": "/r",
        "TRACEPARENT": "00",
        "PATH": "/bin",
        "TRACEPARENTS": "x",
    }
    assert set(forwarded(env)) == {"CNI_ARGS", "CNVNET_RUNDIR", "TRACEPARENT"}


@pytest.mark.parametrize("change", [{"v": 2}, {"v": None}, {"v": "1"}])
def test_another_version_is_unsupported(change: dict[str, object]) -> None:
    assert decode_call({**json.loads(CALL), **change}) is None


def test_a_request_of_another_kind_is_unsupported() -> None:
    assert decode_call({"v": 1, "guest": "serve", "record": "x.json"}) is None


@pytest.mark.parametrize(
    "change",
    [
        {"argv0": 1},
        {"env": None},
        {"env": ["CNI_COMMAND=ADD"]},
        {"env": {"CNI_COMMAND": 1}},
        {"stdin": None},
        {"stdin": "e30"},
        {"stdin": "e3 0="},
        {"stdin": "\xe9"},
        {"fds": None},
        {"fds": "self"},
        {"fds": ["mnt", "self"]},
        {"fds": ["self", "self"]},
        {"fds": ["self", "cgroup"]},
        {"fds": [["self"]]},
    ],
    ids=json.dumps,
)
def test_a_call_that_is_not_well_formed_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(MalformedMessage, match=next(iter(change))):
        decode_call({**json.loads(CALL), **change})


def test_unsupported_is_unsupported_in_any_version() -> None:
    assert decode_response(encode_unsupported()) is None
    assert decode_response(b'{"v": 2, "unsupported": true}') is None


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"{" * 100_000,
        b'{"v":1}',
        b'{"v":1,"unsupported":false}',
        b'{"v":2,"exit":0,"stdout":"","stderr":""}',
        b'{"v":1,"exit":0,"stdout":""}',
        b'{"v":1,"exit":true,"stdout":"","stderr":""}',
        b'{"v":1,"exit":256,"stdout":"","stderr":""}',
        b'{"v":1,"exit":-1,"stdout":"","stderr":""}',
        b'{"v":1,"exit":0,"stdout":"e30","stderr":""}',
        b'{"v":1,"exit":0,"stdout":"","stderr":null}',
        b'\xff{"v":1,"exit":0,"stdout":"","stderr":""}',
    ],
    ids=lambda raw: ascii(raw[:50]),
)
def test_what_is_no_answer_is_refused(raw: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode_response(raw)


@pytest.mark.parametrize("version", ["true", "1.0", '"1"', "2", "null"])
def test_another_version_is_none(version: str) -> None:
    call = CALL.replace(b'"v":1', f'"v":{version}'.encode())
    assert decode_call(json.loads(call)) is None
    answer = encode_response(Response(0, b"", b"")).replace(b'"v":1', f'"v":{version}'.encode())
    with pytest.raises(MalformedMessage):
        decode_response(answer)
