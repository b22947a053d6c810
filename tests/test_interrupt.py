"""Ctrl-C and SIGTERM: noted between steps, a checkpoint written, handlers put back."""

import os
import signal
import threading

import pytest
from stand_in import EVERY, STEPS, at_line, flat, train

from pyro_gebm.training import interrupt
from pyro_gebm.training.checkpoints import Checkpoints
from pyro_gebm.training.interrupt import SIGNALS, deferred_interrupt


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.fixture(autouse=True)
def _handlers_stay():
    before = handlers()
    yield
    after = handlers()
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)
    assert after == before


def send(number=signal.SIGINT):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted(number):
    with deferred_interrupt() as interrupted:
        assert not interrupted() and interrupted.signal is None
        send(number)
        assert interrupted() and interrupted.signal == number
    assert interrupted()  # what came after the last look is seen after the block


@pytest.mark.parametrize("first", SIGNALS)
def test_a_second_ctrl_c_raises_at_once(first):
    reached = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupt() as interrupted:
        send(first)
        reached.append("still here")
        send()
        reached.append("too late")
    assert reached == ["still here"] and interrupted.signal == first


@pytest.mark.parametrize("first", SIGNALS)
def test_a_second_sigterm_does_not_stop_the_checkpoint(first):
    with deferred_interrupt() as interrupted:
        send(first)
        send(signal.SIGTERM)
        send(signal.SIGTERM)
    assert interrupted.signal == first


def test_outside_the_block_signals_are_what_they_were():
    with deferred_interrupt():
        pass
    with pytest.raises(KeyboardInterrupt):
        send()


def test_handlers_are_put_back_after_an_error():
    before = handlers()
    with pytest.raises(RuntimeError, match="a step"), deferred_interrupt():
        assert handlers() != before
        raise RuntimeError("a step failed")
    assert handlers() == before


def test_blocks_can_be_nested():
    with deferred_interrupt() as outer:
        with deferred_interrupt() as inner:
            send()
        assert inner() and not outer()
        send()
        assert outer()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_was_ignored_stays_so(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with deferred_interrupt() as interrupted:
            send(number)
            send(number)
            assert not interrupted()
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_another_thread_changes_nothing():
    found = []

    def work():
        with deferred_interrupt() as interrupted:
            found.extend([interrupted(), *handlers()])

    before = handlers()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False, *before]


def walk(line, signals):
    """A block in which signals come at one line of the package; how it ended, and whether noted."""

    def act():
        for number in signals:
            signal.raise_signal(number)

    interrupted = None
    try:
        with at_line(line, act, interrupt.__file__) as lines, deferred_interrupt() as interrupted:
            pass
    except KeyboardInterrupt:
        return "raised", lines[0]
    return ("noted" if interrupted() else "lost"), lines[0]


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGINT, signal.SIGINT]])
def test_handlers_are_put_back_wherever_ctrl_c_comes(signals):
    before, endings, line = handlers(), [], 0
    while True:
        line += 1
        ended, seen = walk(line, signals)
        assert handlers() == before
        if seen < line:
            break  # no such line
        endings.append(ended)
    assert "lost" not in endings and {"raised", "noted"} == set(endings)
    assert len(endings) > 15


@pytest.mark.parametrize("number", SIGNALS)
def test_ctrl_c_writes_a_checkpoint_from_which_the_training_goes_on(tmp_path, number):
    whole = tmp_path / "whole"
    whole.mkdir()
    with at_line(0, None) as lines:
        train(whole)
    expected = Checkpoints(whole / "checkpoints").latest()
    stops = set()
    for place in range(20):
        folder = tmp_path / str(place)
        folder.mkdir()
        # From behind the opening of the block to before the last step's end.
        line = round(lines[0] * (0.06 + 0.85 * place / 20))
        with at_line(line, lambda: send(number)):
            assert train(folder)
        stopped = Checkpoints(folder / "checkpoints").latest().step
        stops.add(stopped)
        assert len((folder / "log.jsonl").read_text().splitlines()) == stopped
        assert not train(folder)
        found = Checkpoints(folder / "checkpoints").latest()
        assert found.step == STEPS and flat(found.state) == flat(expected.state)
        assert (folder / "log.jsonl").read_bytes() == (whole / "log.jsonl").read_bytes()
    assert len(stops) >= 10 and any(step % EVERY for step in stops)
