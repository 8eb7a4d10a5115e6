"""What the other tests' forked commands rest on."""

import gc
import os

import forked
import pytest

pytestmark = pytest.mark.slow  # what is imported before the fork


class Cycle:
    """Holds a file; only the collector finds out that nobody holds it."""

    def __init__(self):
        self.itself, self.file = self, open(os.devnull)  # noqa: SIM115


def test_files_that_the_tests_left_in_cycles_close_nothing_in_a_fork():
    forked.warm()
    cycles = [Cycle() for _ in range(9)]
    numbers = [cycle.file.fileno() for cycle in cycles]
    gc.collect()  # all are old: they are not found by chance

    def act():
        gc.collect()
        print([os.fstat(number).st_ino > 0 for number in numbers])

    cycles.clear()
    done = forked._start(act).completed(forked.LONG)
    assert (done.returncode, done.stdout) == (0, f"{[True] * 9}\n"), done.stderr
