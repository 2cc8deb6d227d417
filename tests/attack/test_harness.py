"""The checks around each attack fail when there is something to see."""

import re
import signal
import time
from collections.abc import Callable

import pytest

from tests.api.raw import connect, head
from tests.attack.conftest import ENOUGH_WAITS, MAX_GROWTH_BYTES, USUAL_WAIT_S, Target

pytestmark = pytest.mark.slow


def test_memory_that_an_attack_takes_is_seen(attack: Callable[..., Target]) -> None:
    """A service that may hold more than is allowed here, given just that much."""
    size = MAX_GROWTH_BYTES + 50 * 10**6
    target = attack(max_body_bytes=2 * size, max_received_bytes=2 * size)

    def attack_it() -> None:
        with target.withstands(), connect(target.url) as connection:
            connection.send(head("/encode", Content_Type="application/x-npy", Content_Length=str(size + 1)))
            for _ in range(size // 10**6):
                connection.send(bytes(10**6))

    with pytest.raises(AssertionError, match=re.compile(r"memory grew by 3\d\d MB")):
        attack_it()


def test_a_second_caller_who_is_not_served_is_seen(
    attack: Callable[..., Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that stands still."""
    monkeypatch.setattr("tests.attack.conftest.CALLER_TIMEOUT_S", 0.5)
    target = attack()

    def attack_it() -> None:
        with target.withstands() as watch:
            target.process.send_signal(signal.SIGSTOP)
            while not watch.failures:
                time.sleep(0.01)
            target.process.send_signal(signal.SIGCONT)

    with pytest.raises(AssertionError, match="second caller"):
        attack_it()


def test_a_second_caller_who_usually_waits_is_seen(attack: Callable[..., Target]) -> None:
    """A model that takes longer than anybody may wait."""
    target = attack(delay_s=USUAL_WAIT_S + 0.05)

    def attack_it() -> None:
        with target.withstands() as watch:
            while len(watch.waits_s.get("score", ())) < ENOUGH_WAITS:
                time.sleep(0.01)

    with pytest.raises(AssertionError, match="score of the second caller usually took"):
        attack_it()


def test_a_second_caller_who_waits_once_is_seen(attack: Callable[..., Target], monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that stands still for a moment."""
    monkeypatch.setattr("tests.attack.conftest.MAX_WAIT_S", 1.0)
    target = attack()

    def attack_it() -> None:
        with target.withstands() as watch:
            while not watch.waits_s:
                time.sleep(0.01)
            target.process.send_signal(signal.SIGSTOP)
            time.sleep(1.2)
            target.process.send_signal(signal.SIGCONT)
            time.sleep(0.5)

    with pytest.raises(AssertionError, match=re.compile(r"of the second caller took 1\.")):
        attack_it()
