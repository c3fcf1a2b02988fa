"""CNI_ARGS."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.cni.args import parse_args, readable_args
from cnvnet.cni.errors import CNIError

KNOWN = frozenset({"MAC", "IP"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("MAC=02:00:00:00:00:01", {"MAC": "02:00:00:00:00:01"}),
        ("MAC=", {"MAC": ""}),
        ("MAC=a;MAC=b", {"MAC": "b"}),
        ("IP=1.2.3.4,1.2.3.5;MAC=x", {"IP": "1.2.3.4,1.2.3.5", "MAC": "x"}),
        ("IgnoreUnknown=1;FOO=BAR", {}),
        ("FOO=BAR;IgnoreUnknown=true", {}),
        ("IgnoreUnknown=TRUE;mac=x;IP=y", {"IP": "y"}),
        ("IgnoreUnknown=0;IP=y", {"IP": "y"}),
        (
            "IgnoreUnknown=true;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p;IgnoreUnknown=1;K8S_POD_NAME=p;MAC=x",
            {"MAC": "x"},
        ),
    ],
)
def test_known_arguments_are_read(text: str, expected: dict[str, str]) -> None:
    assert parse_args(text, KNOWN) == expected


@pytest.mark.parametrize(
    ("text", "msg"),
    [
        ("FOO", 'ARGS: invalid pair "FOO"'),
        ("MAC=a=b", 'ARGS: invalid pair "MAC=a=b"'),
        ("MAC=a;", 'ARGS: invalid pair ""'),
        ("FOO=BAR", 'ARGS: unknown args ["FOO=BAR"]'),
        ("FOO=BAR;MAC=x;mac=y", 'ARGS: unknown args ["FOO=BAR" "mac=y"]'),
        ("IgnoreUnknown=0;FOO=BAR", 'ARGS: unknown args ["FOO=BAR"]'),
        (
            "IgnoreUnknown=Yes",
            'ARGS: error parsing value of pair "IgnoreUnknown=Yes": '
            "boolean unmarshal error: invalid input yes",
        ),
    ],
)
def test_other_arguments_are_refused_in_the_references_words(text: str, msg: str) -> None:
    with pytest.raises(CNIError) as caught:
        parse_args(text, KNOWN)
    assert (caught.value.code, caught.value.msg) == (4, msg)


@given(text=st.text())
def test_any_text_is_read_or_refused_with_code_4(text: str) -> None:
    try:
        found = parse_args(text, KNOWN)
    except CNIError as e:
        code = e.code
    else:
        code = 4
        assert set(found) <= KNOWN
    assert code == 4


@given(text=st.text(st.characters(exclude_categories=())))
def test_any_text_can_be_shown_to_people(text: str) -> None:
    "".join(key + value for key, value in readable_args(text).items()).encode()


def test_what_people_are_shown_may_be_malformed() -> None:
    assert readable_args("A=1;B;C=2=3;\udcff=x;A=4") == {"A": "4", "B": "", "C": "2=3", "?": "x"}
