"""The harness finds what it is there to find: readers that are deliberately faulty are caught, each for its fault."""

import os
import signal
import time

from harness import Case, Limits, fuzz

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


def test_every_kind_of_faulty_reader_is_caught_and_the_next_case_is_read(monkeypatch):
    monkeypatch.setenv("FUZZ_SECONDS", "")
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


def test_the_same_seed_gives_the_same_cases(monkeypatch):
    monkeypatch.setenv("FUZZ_SECONDS", "")
    seen = []

    def make(chance, number):
        seen.append(chance.random())
        return Case("-", "fine")

    for seed in ("1", "1", "2"):
        monkeypatch.setenv("FUZZ_SEED", seed)
        fuzz("same", "test_fuzz_harness:faulty", make, 3, 0)
    assert seen[:3] == seen[3:6] != seen[6:]
    monkeypatch.setenv("FUZZ_CASE", "2")
    assert fuzz("same", "test_fuzz_harness:faulty", make, 3, 0).cases == 1
    assert seen[-1] == seen[8]
