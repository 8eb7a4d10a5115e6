"""One contract for every launcher: the number is exact, states agree, deaths and signals lose nothing.

A launcher is the options of ``tune`` that choose it; a new one is a line of ``launcher``. Ray has two nodes.
"""

import contextlib
import json
import os
import re
import signal
import threading
import time

import forked
import optuna
import psutil
import pytest
from conftest import STUDY, make_place
from forked_slots import NAME
from test_workers import check_agreement, client

from xray_opt.errors import ConfigError
from xray_opt.launchers import member
from xray_opt.tuning import read_study, storage_url

#: Seconds that anything may take on a loaded machine.
LONG = 300
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_nodes(request):
    cluster = request.getfixturevalue("ray_cluster")
    node = cluster.near()
    yield cluster
    node.stop()


#: Launchers whose workers are other processes than the call.
APART = ("processes", "ray")


@pytest.fixture(params=["in-process", *APART])
def launcher(request):
    if request.param == "in-process":
        return ()
    if request.param == "processes":
        return ("--workers", "2")
    return ("--ray", request.getfixturevalue("two_nodes").address, "--workers", "2")


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    forked.end_all()


def write_study(place, name, epochs=2, **extra):
    """A study file of the tests' tiny study under another name."""
    text = STUDY.replace("name: tiny", f"name: {name}").replace("epochs: 2", f"epochs: {epochs}")
    lines = [f"{key}: {value}" for key, value in extra.items()]
    (place.workspace.studies / f"{name}.yaml").write_text("\n".join([text, *lines]))


def trials_of(place, name, storage=None):
    return read_study(name, place.workspace, storage).trials


def ends_of(place, name):
    """State and reason of every trial; more may be forked for the place afterwards."""
    return forked.ask(lambda: [(trial.state, trial.reason) for trial in trials_of(place, name)])


def parent_status(place, name):
    return client(place).get_run(read_study(name, place.workspace).notes["mlflow_parent"]).info.status


class Listening:
    """Reads what a running command says, in a thread of its own, so that its pipe never fills up."""

    def __init__(self, process):
        self.process, self.lines = process, []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, pattern):
        """The first match of a line."""
        deadline = time.monotonic() + LONG
        while time.monotonic() < deadline:
            for line in list(self.lines):
                if found := re.search(pattern, line):
                    return found
            assert self.process.poll() is None, self.text
            time.sleep(0.05)
        raise AssertionError(self.text)

    def end(self):
        """Exit code and standard output."""
        out = self.process.stdout.read()
        return self.process.wait(LONG), out

    @property
    def text(self):
        return "\n".join(self.lines)


def slots_of(place):
    """The processes of all slots that work in a place, whosever children they are, in the order of their start."""
    return sorted((one for one in psutil.process_iter() if is_slot(one, place)), key=lambda one: one.pid)


def is_slot(process, place):
    root = str(place.workspace.root)
    with contextlib.suppress(psutil.Error):
        if process.name() == NAME:  # forked: its environment is not to be seen
            return process.cwd() == root
        return "xray_opt.launchers.slot" in process.cmdline() and process.environ().get("XRAY_OPT_HOME") == root
    return False


def owner_of(place, name, number, storage=None):
    """The process that runs a trial."""

    def owner():
        study = optuna.load_study(study_name=name, storage=storage_url(place.workspace, storage))
        return study.trials[number].user_attrs["owner"]["pid"]

    return forked.ask(owner)


def wait_until(holds, seconds=LONG):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_whole_study(tmp_path, launcher):
    """Number, agreement, champion, settings, a storage of its own, the shape of the JSON; then nothing to do."""
    place = make_place(tmp_path)
    storage = f"sqlite:///{place.workspace.root}/elsewhere.db"
    write_study(place, "whole", storage=storage)
    arguments = ("tune", "--study", "whole", "--trials", "5", "--set", "training.batch_size=16", *launcher, "--json")
    done = forked.run(place, *arguments)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert list(report) == [
        "study", "stopped", "asked", "complete", "pruned", "failed", "started_now", "best", "registered",
        "mlflow_experiment", "waiting",
    ]  # fmt: skip
    assert (report["stopped"], report["asked"], report["started_now"]) == ("done", 5, 5)
    assert (report["complete"] + report["pruned"], report["failed"]) == (5, 0)
    trials, runs = check_agreement(place, "whole", storage)
    assert {trial.state for trial in trials} <= {"COMPLETE", "PRUNED"}
    assert {run.data.params["training.batch_size"] for run in runs.values()} == {"16"}
    best = max(trials, key=lambda trial: (trial.value or 0, -trial.number))
    assert report["best"]["trial"] == best.number
    assert report["registered"]["aliases"] == ["champion"]
    mlflow = client(place)
    champion = mlflow.get_model_version_by_alias("xray-pneumonia", "champion")
    assert champion.run_id == runs[best.number].info.run_id
    assert len(mlflow.search_model_versions("name = 'xray-pneumonia'")) == 1
    parent = mlflow.get_run(read_study("whole", place.workspace, storage).notes["mlflow_parent"])
    assert parent.info.status == "FINISHED"
    assert not place.workspace.study_database.exists()
    again = json.loads(place.run(*arguments).stdout)
    assert (again["stopped"], again["started_now"]) == ("nothing to do", 0)
    assert len(trials_of(place, "whole", storage)) == 5


def test_a_killed_worker_loses_nothing(tmp_path, launcher):
    place = make_place(tmp_path)
    write_study(place, "killed", epochs=8)
    arguments = ("tune", "--study", "killed", "--trials", "4", *launcher)
    process = forked.fork(place, *arguments)
    heard = Listening(process)
    found = heard.wait_for(r"(?:slot (\d+) · )?trial (\d+) · epoch 2/8")
    worker = owner_of(place, "killed", int(found[2]))
    assert (worker == process.pid) == (not launcher)
    os.kill(worker, signal.SIGKILL)
    code, _ = heard.end()
    if launcher:
        assert code == 0, heard.text
        assert f"slot {found[1]} was killed (SIGKILL; out of memory?) and is started again (1 of 3 times)" in heard.text
    else:
        assert forked.run(place, *arguments).returncode == 0
    trials, _ = check_agreement(place, "killed")
    assert sum(trial.state in ("COMPLETE", "PRUNED") for trial in trials) == 4
    assert [trial.state for trial in trials].count("FAIL") == 1, heard.text
    (lost,) = [trial for trial in trials if trial.state == "FAIL"]
    (resumed,) = [trial for trial in trials if trial.notes.get("retry_of") == lost.number]
    assert (lost.number, lost.reason, resumed.params) == (int(found[2]), "worker-lost", lost.params)
    assert resumed.intermediate[1] == lost.intermediate[1]
    assert not list((place.workspace.study_folder("killed") / "checkpoints").glob("*"))


def test_a_stopped_call_ends_its_workers_and_the_next_one_goes_on(tmp_path, launcher):
    place = make_place(tmp_path)
    write_study(place, "stopped", epochs=8)
    arguments = ("tune", "--study", "stopped", "--trials", "3", *launcher)
    process = forked.fork(place, *arguments)
    heard = Listening(process)
    heard.wait_for(r"trial \d+ · epoch 1/8")
    wait_until(lambda: len(slots_of(place)) == (2 if launcher else 0))
    slots = slots_of(place)
    process.terminate()
    code, _ = heard.end()
    assert (code, "Traceback" in heard.text) == (130, False), heard.text
    assert heard.lines[-1] == "interrupted; run the same command again to go on"
    assert not [slot for slot in slots if slot.is_running()]
    ends = ends_of(place, "stopped")
    assert ["FAIL", "interrupted"] in ends
    assert "RUNNING" not in {state for state, _ in ends}
    assert forked.ask(lambda: parent_status(place, "stopped")) == "KILLED"
    assert forked.run(place, *arguments).returncode == 0
    trials, _ = check_agreement(place, "stopped")
    assert [trial.state in ("COMPLETE", "PRUNED") for trial in trials].count(True) == 3
    assert {trial.reason for trial in trials if trial.state == "FAIL"} == {"interrupted"}


def test_a_slot_that_is_told_to_stop_says_by_what_and_hands_its_trial_to_the_others(tmp_path):
    place = make_place(tmp_path)
    write_study(place, "told", epochs=8)
    heard = Listening(forked.fork(place, "tune", "--study", "told", "--trials", "3", "--workers", "2"))
    found = heard.wait_for(r"slot (\d+) · trial (\d+) · epoch 2/8")
    os.kill(owner_of(place, "told", int(found[2])), signal.SIGTERM)
    code, _ = heard.end()
    assert code == 0, heard.text
    assert f"slot {found[1]} was told to stop (SIGTERM); its trial is handed to the other slots" in heard.text
    trials, _ = check_agreement(place, "told")
    assert [trial.state in ("COMPLETE", "PRUNED") for trial in trials].count(True) == 3, heard.text
    assert {trial.reason for trial in trials if trial.state == "FAIL"} == {"interrupted"}, heard.text


def test_a_timeout_starts_no_new_trial(tmp_path, launcher):
    place = make_place(tmp_path)
    seconds = "25" if "--ray" in launcher else "12"  # Ray's slots import what others are forked with
    done = forked.run(place, "tune", "--study", "tiny", "--trials", "500", "--timeout", seconds, *launcher, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["stopped"] == "timeout"
    assert report["complete"] == report["started_now"] < 500
    check_agreement(place)
    report = place.json("tune", "--study", "tiny", "--trials", "500", "--timeout", "0", *launcher)
    assert (report["stopped"], report["started_now"]) == ("timeout", 0)


@pytest.mark.parametrize("launcher", ["in-process", "processes"], indirect=True)
def test_what_stops_every_trial_is_one_line_and_an_exit_code(tmp_path, launcher, monkeypatch):
    """The fault is planted, as settings are looked at before; Ray's slots are no children of this process."""

    def refuse(config, images):
        raise ConfigError("nothing can be trained")

    place = make_place(tmp_path)
    monkeypatch.setattr("xray_opt.trainer.trainer._check", refuse)
    done = forked.run(place, "tune", "--study", "tiny", *launcher)
    assert (done.returncode, done.stderr.count("error:")) == (2, 1), done.stderr
    assert done.stderr.splitlines()[-1] == "error: nothing can be trained"
    assert "Traceback" not in done.stderr
    trials, _ = check_agreement(place)
    assert {trial.state for trial in trials} == {"FAIL"}


@pytest.mark.parametrize("launcher", APART, indirect=True)
def test_slots_end_with_their_parent_however_it_dies(tmp_path, launcher):
    place = make_place(tmp_path)
    write_study(place, "orphans", epochs=8)
    arguments = ("tune", "--study", "orphans", "--trials", "3", *launcher)
    process = forked.fork(place, *arguments)
    heard = Listening(process)
    heard.wait_for(r"trial \d+ · epoch 1/8")
    wait_until(lambda: len(slots_of(place)) == 2)
    slots = slots_of(place)
    process.kill()
    heard.end()
    psutil.wait_procs(slots, timeout=LONG)
    assert not [slot for slot in slots if slot.is_running()]
    ends = ends_of(place, "orphans")
    assert "RUNNING" not in {state for state, _ in ends}
    assert "interrupted" in {reason for _, reason in ends}
    assert forked.run(place, *arguments).returncode == 0
    trials, _ = check_agreement(place, "orphans")
    assert "worker-lost" not in {trial.reason for trial in trials}
    assert [trial.state in ("COMPLETE", "PRUNED") for trial in trials].count(True) == 3


def test_the_display_tells_which_slot_does_which_trial(tmp_path):
    place = make_place(tmp_path)
    done = forked.run(place, "tune", "--study", "tiny", "--trials", "4", "--workers", "2")
    assert done.returncode == 0, done.stderr
    started = re.findall(r"^(slot \d) · trial (\d) \((\d) of 4\)", done.stderr, flags=re.MULTILINE)
    ended = re.findall(r"^(slot \d) · trial (\d): val F1", done.stderr, flags=re.MULTILINE)
    assert sorted(trial for _, trial, _ in started) == ["0", "1", "2", "3"]
    assert sorted((slot, trial) for slot, trial, _ in started) == sorted(ended)
    # What the parent says, its slots do not say again, and no slot reports that it waits for another one.
    assert done.stderr.count("shortcut screen:") == done.stderr.count("base weights are RANDOM") == 1
    assert "waiting for trial" not in done.stderr


@pytest.mark.parametrize(
    ("program", "line", "restarts"),
    [
        ("import os; os.kill(os.getpid(), 9)", "no slot of study tiny is left", 6),
        ("raise SystemExit(130)", "no slot of study tiny is left", 0),
        ("print('noise'); import sys; print('more', file=sys.stderr); sys.exit(3)", "no slot of study tiny is left", 6),
    ],
)
def test_slots_that_cannot_work_end_the_call_with_one_line(tmp_path, monkeypatch, program, line, restarts):
    place = make_place(tmp_path)
    monkeypatch.setattr(member, "PROGRAM", ("-c", program))
    done = place.run("tune", "--study", "tiny", "--workers", "2")
    assert (done.returncode, done.stderr.count("error:"), done.stderr.count(line)) == (6, 1, 1), done.stderr
    assert done.stderr.count("is started again") == restarts
    assert ("slot 0: noise" in done.stderr or "slot 1: noise" in done.stderr) == ("noise" in program)
    if "kill" in program:  # the hardest end stands for the others
        monkeypatch.undo()
        assert place.json("tune", "--study", "tiny")["complete"] == 3
