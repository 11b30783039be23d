"""Mutated requests on one connection: a few in every run, ten thousand in the slow one."""

from __future__ import annotations

import random

import pytest

from tests.fuzz import fuzz_front
from tests.fuzz.fuzz_front import ROW, agree, answers, exchange, sound


def test_what_counts_as_alike() -> None:
    assert agree([200, 400], [200, 400], shorter_closes=False)
    assert agree([200], [200, 400], shorter_closes=False)  # the last was cut off
    assert not agree([], [200, 400], shorter_closes=False)
    assert not agree([200, 200, 200], [400, 200, 200], shorter_closes=True)


def test_an_answer_that_is_not_whole_is_seen() -> None:
    whole = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
    assert answers(whole * 2, []) == [200, 200]
    for cut in (whole[:-1], whole + b"HTTP/1.1 2"):
        with pytest.raises(ValueError, match="answer"):
            answers(cut, [])


def test_a_sound_request_before_a_broken_one_is_answered_though_the_caller_hangs_up() -> None:
    first = sound("POST", "/v1/models/apps:classify", {"examples": [ROW]})
    chunked = (
        b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\n"
    )
    with fuzz_front.two_servers() as servers:
        for server in servers:
            got, closed = exchange(server, [first + chunked])
            assert answers(got, []) == [200, 400] and closed


def test_some_mutated_requests() -> None:
    findings: list[str] = []
    results = fuzz_front.run(500, report=findings.append)
    assert findings == []
    assert results["fine"] == 500


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_mutated_requests() -> None:
    findings: list[str] = []
    fuzz_front.run(10_000, first=random.randrange(10**6), report=findings.append)
    assert findings == []
