"""A SIGTERM that comes while Python runs a finalizer or a weak reference's callback ends a command and a slot all the
same."""

import subprocess
import sys

import pytest

CODE = """
import os, signal, sys, time, weakref
from xray_opt.cli.terminal import bear_a_closed_terminal
from xray_opt.launchers.slot import _Once

class Thing:
    pass

def callback(gone):
    os.kill(os.getpid(), signal.{signal})
    time.sleep(0.1)  # the handler raises here

{install}()
thing = Thing()
watched = weakref.ref(thing, callback)
try:
    del thing
    print("goes on", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    for _ in range(3):
        time.sleep(0.1)  # one interrupt is one
    raise SystemExit(7)
"""


@pytest.mark.parametrize("install", ["bear_a_closed_terminal", "_Once().hear"])
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_an_interrupt_that_python_ignores_comes_again(install, number):
    command = [sys.executable, "-c", CODE.format(install=install, signal=number)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (7, "goes on\n", "")


def test_other_things_that_python_ignores_are_said():
    code = "from xray_opt.interrupts import insist\ninsist()\nclass Bad:\n    def __del__(self): 1 / 0\nBad()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, "ZeroDivisionError" in done.stderr) == (0, True)
