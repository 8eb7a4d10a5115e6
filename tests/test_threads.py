"""That threads sleep soon is what torch's own OpenMP says of itself."""

import os
import re
import subprocess
import sys

import pytest

from xray_opt.threads import TURNS, sleep_soon

IMPORT = "import torch"
COMMANDS = {
    "plain": ("-c", IMPORT),
    "command": ("-m", "xray_opt", "tune"),
    "slot": ("-c", f"from xray_opt.launchers.slot import main; main(2); {IMPORT}"),
}


def turns_of(command, folder, **own):
    """What OpenMP has read of the environment when it was loaded."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    env = kept | {"OMP_DISPLAY_ENV": "verbose", "XRAY_OPT_HOME": str(folder)} | own
    done = subprocess.run(
        [sys.executable, *command], env=env, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    found = re.search(r"GOMP_SPINCOUNT = '(\w+)'", done.stderr)
    return found and found[1]


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    turns = turns_of(COMMANDS["plain"], tmp_path_factory.mktemp("plain"))
    if turns is None:
        pytest.skip("torch has another OpenMP here")
    return turns


@pytest.mark.parametrize("command", ["command", "slot"])
def test_threads_of_commands_and_slots_sleep_soon(tmp_path, usual, command):
    assert usual != str(TURNS)
    assert turns_of(COMMANDS[command], tmp_path) == str(TURNS)


def test_what_the_user_says_of_waiting_threads_stays(tmp_path, usual):
    assert turns_of(COMMANDS["command"], tmp_path, GOMP_SPINCOUNT="77") == "77"
    said = {"OMP_WAIT_POLICY": "active"}
    sleep_soon(said)
    assert said == {"OMP_WAIT_POLICY": "active"}
