"""Ctrl-C is held back until a step is whole; a second one is not."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from widedeep.training.run import DeferredInterrupt


@pytest.fixture(autouse=True)
def usual_handler() -> Iterator[None]:
    """Other tests' libraries may have put a handler of their own in its place."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def test_the_first_waits_for_the_check() -> None:
    with DeferredInterrupt() as held:
        held.check()
        press_ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            held.check()
        held.check()
    assert not held.forced


def test_the_second_interrupts_at_once() -> None:
    with DeferredInterrupt() as held:
        press_ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()
    assert held.forced


def test_sigterm_waits_where_a_background_job_ignores_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with DeferredInterrupt(terminates=True) as held:
        press_ctrl_c()
        assert not held.pending
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            held.check()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_afterwards_ctrl_c_means_what_it_meant() -> None:
    with pytest.raises(ZeroDivisionError), DeferredInterrupt():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        press_ctrl_c()


def test_a_handler_of_the_application_stays() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with DeferredInterrupt() as held:
            press_ctrl_c()
            held.check()
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]


def test_other_threads_are_left_alone() -> None:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with DeferredInterrupt() as held:
                held.check()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []


def test_it_says_what_happens(capfd: pytest.CaptureFixture[str]) -> None:
    with DeferredInterrupt(announce=True):
        press_ctrl_c()
    assert "finishing this step, then saving" in capfd.readouterr().err
