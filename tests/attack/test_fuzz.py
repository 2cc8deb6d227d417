"""A short run of the fuzzer, and what it must see in a service that is broken."""

import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from service.words import NDJSON
from tests.attack.fuzz import GRACE_S, Ask, Report, Request, fuzz, fuzzed, make_request, seeds

SECONDS = 30.0
SEED = 20_250_101
MIB = 2**20


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_mutated_requests_are_refused_or_answered(tmp_path: Path) -> None:
    """In every encoding and protocol; `make fuzz MINUTES=60` is the same for longer."""
    with fuzzed(tmp_path) as (open_ask, memory):
        report = fuzz(open_ask, memory, seed=SEED, seconds=SECONDS)
    assert not report.faults, "\n".join([str(report), *report.faults])
    assert report.requests > 100
    assert report.answers[200] > 0
    assert report.answers["OK"] > 0
    assert report.answers[400] > 0


def test_a_seed_and_a_number_give_the_request_again() -> None:
    """So that a fault can be looked at; other numbers give others, of every kind."""
    good = seeds()
    assert [make_request(good, 1, number) for number in range(50)] == [
        make_request(good, 1, number) for number in range(50)
    ]
    made = [make_request(good, 1, number) for number in range(5000)]
    assert {request.name for request, _ in made} == {request.name for request in good}
    assert len({request.body for request, _ in made}) > 3000


def run(ask: Ask, memory: Callable[[], int] = lambda: 0) -> Report:
    return fuzz(lambda: nullcontext(ask), memory, seed=1, seconds=1, callers=2)


def well(request: Request) -> int | str:
    time.sleep(0.001)
    return "OK" if request.is_grpc else 200


def lost(request: Request) -> int | str:
    raise ConnectionResetError


def late(request: Request) -> int | str:
    if request.deadline_s == 0.001:
        time.sleep(GRACE_S + 0.05)
    return well(request)


def late_stream(request: Request) -> int | str:
    return late(request) if request.headers.get("content-type") == NDJSON else well(request)


BROKEN: dict[str, tuple[Ask, str]] = {
    "an error of the service": (lambda request: 500, "answered 500"),
    "an error of gRPC": (lambda request: "INTERNAL" if request.is_grpc else 200, "answered INTERNAL"),
    "a good request refused": (lambda request: "INVALID_ARGUMENT" if request.is_grpc else 400, "answered 400"),
    "no answer": (lost, "no answer"),
    "a late answer": (late, "answered 200 after 1"),
    "a late stream": (late_stream, "answered 200 after 1"),
}


def test_a_good_service_has_no_faults() -> None:
    """Or what is seen below would say nothing."""
    report = run(well)
    assert report.faults == []
    assert report.requests > 50


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_service_is_seen(name: str) -> None:
    """Each kind of fault."""
    ask, fault = BROKEN[name]
    report = run(ask)
    assert any(found.startswith(fault) for found in report.faults), str(report)


def test_memory_that_grows_is_seen() -> None:
    """Between the warm-up and the end."""
    held, lock = [0], threading.Lock()

    def leaks(request: Request) -> int | str:
        with lock:
            held[0] += MIB
        return well(request)

    assert "memory grew" in run(leaks, lambda: held[0]).faults[-1]
