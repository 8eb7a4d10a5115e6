"""The harness finds what it is there to find: readers that are deliberately faulty are caught, each for its fault."""

import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest
from harness import Case, Child, Limits, fuzz

from xray_opt.errors import ConfigError, DataError


class Crooked(ConfigError):
    """One whose line is none."""

    def __init__(self, line):
        Exception.__init__(self, line)


def faulty(given):
    """Does with each of these inputs what a product must not do."""
    match given:
        case "traceback":
            return int("no number")
        case "hang":
            while True:
                time.sleep(1)
        case "slow":
            end = time.process_time() + 1.1
            while time.process_time() < end:
                pass
        case "memory":
            return len(bytearray(4 * 2**30))
        case "hidden memory":
            try:
                return len(bytearray(4 * 2**30))
            except MemoryError as error:
                raise DataError("the film needs a lot") from error
        case "exit":
            raise SystemExit(0)
        case "litter":
            Path(tempfile.mkdtemp(), "left").touch()
        case "death later":
            threading.Timer(0.1, os._exit, (3,)).start()
        case "death":
            os.kill(os.getpid(), signal.SIGKILL)
        case "two lines":
            raise Crooked("one\x1b[2J\ntwo")
        case "long":
            raise ConfigError("x" * 1000)
        case "nameless":
            raise ConfigError("something is wrong")
        case "wrong":
            assert given == "right"
        case "refused":
            raise ConfigError("film.png is refused")


FAULTS = {
    "traceback": "ValueError: invalid literal",
    "memory": "out of memory",
    "hidden memory": "out of memory",
    "exit": "SystemExit",
    "two lines": "not one printable line",
    "long": "1000 characters are no clear line",
    "nameless": "names none of",
    "wrong": "AssertionError",
    "hang": "a hang",
    "slow": "a hang",
    "death": "the process ended with -9",
}


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in ("FUZZ_SECONDS", "FUZZ_SEED", "FUZZ_CASE"):
        monkeypatch.delenv(name, raising=False)


def test_every_kind_of_faulty_reader_is_caught_and_the_next_case_is_read():
    given = [text for fault in FAULTS for text in (fault, "fine")] + ["refused"]
    limits = Limits(seconds=1, megabytes=256)
    name = ("film.png",)
    tally = fuzz(
        "faulty", "test_fuzz_harness:faulty", lambda _, n: Case("-", given[n], name), len(given), 0, limits=limits
    )
    assert (tally.accepted, tally.refused, len(tally.faults)) == (len(FAULTS), 1, len(FAULTS))
    for number, (fault, says) in zip(range(0, len(given), 2), FAULTS.items(), strict=False):
        (found,) = [text for text in tally.faults if f"FUZZ_CASE={number} " in text]
        assert says in found, fault


def test_a_process_that_ends_between_two_cases_is_a_fault_and_leaves_no_files():
    child = Child("test_fuzz_harness:faulty", Limits(1, 256))
    assert child.judge("litter") == ("accepted", "")
    folder = Path(child.place)
    assert len(list(folder.rglob("left"))) == 1
    assert child.judge("death later") == ("accepted", "")
    child._process.wait(60)
    assert child.judge("fine") == ("fault", "the process ended between two cases")
    assert not folder.exists()
    assert child.judge("fine") == ("accepted", "")
    child.close()


def test_the_same_seed_gives_the_same_cases(monkeypatch):
    seen = []

    def make(chance, number):
        seen.append(chance.random())
        return Case("-", "fine")

    for seed in ("1", "1", "2"):
        monkeypatch.setenv("FUZZ_SEED", seed)
        fuzz("same", "test_fuzz_harness:faulty", make, 3, 0)
    assert seen[:3] == seen[3:6] != seen[6:]
    monkeypatch.setenv("FUZZ_CASE", "2")
    assert fuzz("same", "test_fuzz_harness:faulty", make, 1, 0).cases == 1
    assert seen[9:] == [seen[8]]


def test_one_case_is_repeated_whatever_else_is_set_and_no_shares_are_asked_of_it(monkeypatch):
    reader = "test_fuzz_harness:faulty"
    monkeypatch.setenv("FUZZ_SECONDS", "1")
    monkeypatch.setenv("FUZZ_CASE", "7")
    numbers = []
    tally = fuzz("one", reader, lambda _, n: numbers.append(n) or Case("-", "fine"), 3, 1, 5)
    assert (numbers, tally.accepted, tally.balanced(0.1, 0.1, 3)) == ([7], 1, True)
    monkeypatch.setenv("FUZZ_CASE", "")
    monkeypatch.setenv("FUZZ_SECONDS", "")
    tally = fuzz("two", reader, lambda _, n: Case("-", ("fine", "refused")[n]), 2, 0)
    assert [tally.balanced(*least) for least in ((0.5, 0.5, 1), (0, 0, 2), (0.6, 0), (0, 0.6))] == [True, *[False] * 3]
