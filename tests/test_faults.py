"""Faults of the machine under a whole ``tune``: what is said, what is kept, and that the next call goes on."""

import errno
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager

import forked
import pytest
import torch
from front import Faulty
from mlflow_stores import base
from test_launchers import Listening, trials_of, write_study
from test_syncing import check_agreement as both_agree
from test_workers import check_agreement, child_runs, client

from xray_opt.backbone import save_base
from xray_opt.errors import DeviceFault, DiskFault, OutOfMemory
from xray_opt.faults import device_faults, disk_faults
from xray_opt.trainer import discard_checkpoint
from xray_opt.tuning import read_study

pytestmark = pytest.mark.slow
#: A slot's Python reads this at its start: the first training step of them all breaks as it does when a GPU fails.
BREAK_ONCE = """
import sys
from pathlib import Path
if any("launchers.slot" in word for word in sys.orig_argv):
    flag = Path({flag!r})
    import torch
    from xray_opt.trainer.step import Stepper
    step = Stepper.step
    def broken(self, *arguments):
        try:
            flag.unlink()
        except FileNotFoundError:
            return step(self, *arguments)
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    Stepper.step = broken
"""


@contextmanager
def full_checkpoints(place):
    """Every checkpoint meets a disk that is really full."""
    if os.geteuid():
        pytest.skip("only root may mount")
    folder = place.workspace.study_folder("tiny") / "checkpoints"
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_hands_the_trial_back_and_the_next_call_goes_on(place):
    with full_checkpoints(place):
        full = place.run("tune", "--study", "tiny")
    assert (full.returncode, full.stderr.count("error:")) == (10, 1), full.stderr
    assert "No space left on device; nothing is lost: free some space" in full.stderr
    (trial,) = [trial for trial in trials_of(place, "tiny") if trial.state != "WAITING"]
    assert (trial.state, trial.reason) == ("FAIL", "interrupted")
    assert place.json("tune", "--study", "tiny", "--trials", "1")["complete"] == 1
    check_agreement(place)


def test_a_full_disk_ends_the_slots_that_meet_it(place):
    with full_checkpoints(place):
        done = forked.run(place, "tune", "--study", "tiny", "--workers", "2")
    assert (done.returncode, "started again" in done.stderr) == (10, False), done.stderr
    assert place.json("tune", "--study", "tiny", "--trials", "2")["complete"] == 2
    check_agreement(place)


def test_a_disk_that_is_closed_hands_the_trial_back_and_the_next_call_goes_on(place):
    """Read-only for root, to whom no file is forbidden; without permission for everybody else."""
    folder = place.workspace.study_folder("tiny") / "checkpoints"
    folder.mkdir(parents=True)
    root = os.geteuid() == 0
    if root:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder], check=True)
    else:
        folder.chmod(0o500)
    try:
        closed = place.run("tune", "--study", "tiny")
    finally:
        if root:
            subprocess.run(["umount", folder], check=True)
        else:
            folder.chmod(0o700)
    assert (closed.returncode, closed.stderr.count("error:")) == (10, 1), closed.stderr
    assert ("Read-only file system" if root else "Permission denied") in closed.stderr
    assert [trial.reason for trial in trials_of(place, "tiny") if trial.state == "FAIL"] == ["interrupted"]
    assert place.json("tune", "--study", "tiny", "--trials", "1")["complete"] == 1
    check_agreement(place)


def test_a_full_disk_of_temporary_files_hands_the_trial_back(place, tmp_path, monkeypatch):
    """A folder there is the first thing that a trial makes, before there is a run that could tell."""
    if os.geteuid():
        pytest.skip("only root may mount")
    assert place.json("tune", "--study", "tiny", "--trials", "1")["complete"] == 1
    (tmp_path / "full").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=1", "tmpfs", tmp_path / "full"], check=True)
    try:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "full"))
        full = place.run("tune", "--study", "tiny", "--trials", "2")
    finally:
        monkeypatch.undo()
        subprocess.run(["umount", tmp_path / "full"], check=True)
    assert (full.returncode, full.stderr.count("error:")) == (10, 1), full.stderr
    assert "No space left on device" in full.stderr
    assert {trial.reason for trial in trials_of(place, "tiny") if trial.state == "FAIL"} == {"interrupted"}
    assert place.json("tune", "--study", "tiny", "--trials", "2")["complete"] == 2
    assert sorted(child_runs(place)) == [0, 2], "trial 1 ended before it had a run"


@pytest.mark.parametrize("closed", ["data", "studies/state/tiny", "mlruns/mlflow.db"])
def test_a_part_of_the_workspace_that_is_closed_is_one_line(place, closed):
    """Root, without what lets it open everything, is a user like any other."""
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("needs setpriv")
    place.workspace.study_folder("tiny").mkdir(parents=True)
    mode = (place.workspace.root / closed).stat().st_mode
    (place.workspace.root / closed).chmod(0)
    try:
        done = subprocess.run(
            ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *place.command("tune", "--study", "tiny")]
            if os.geteuid() == 0
            else place.command("tune", "--study", "tiny"),
            cwd=place.workspace.root,
            env=place.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        (place.workspace.root / closed).chmod(mode)
    assert done.returncode in (3, 6, 7, 10), done.stderr
    assert (done.stderr.count("error:"), "Permission denied" in done.stderr) == (1, True), done.stderr
    assert "Traceback" not in done.stderr


def test_a_read_only_disk_is_told_from_a_fault_of_the_trial(tmp_path):
    if os.geteuid():
        pytest.skip("only root may mount")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=True)
    try:
        with pytest.raises(DiskFault, match="No space left"), disk_faults():
            (tmp_path / "file").write_bytes(b"x" * 100_000)
        subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
        with pytest.raises(DiskFault, match="Read-only file system"), disk_faults():
            (tmp_path / "other").write_bytes(b"x")
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    for number in (errno.EIO, errno.ESTALE, errno.EACCES):
        with pytest.raises(DiskFault), disk_faults():
            raise OSError(number, os.strerror(number), "file")
    with pytest.raises(KeyError), disk_faults():
        raise KeyError("a fault of the trial stays what it is")


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), DeviceFault),
        (RuntimeError("CUDA error: device-side assert triggered"), DeviceFault),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), DeviceFault),
        (torch.OutOfMemoryError("CUDA out of memory."), OutOfMemory),
        (torch.AcceleratorError("CUDA error: out of memory"), OutOfMemory),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), OutOfMemory),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), OutOfMemory),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), DeviceFault),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError),
    ],
)
def test_a_broken_gpu_is_told_from_a_fault_of_the_training(error, becomes):
    with pytest.raises(becomes) as caught, device_faults():
        raise error
    assert (caught.value is error) == (becomes is RuntimeError)


def test_a_full_disk_under_the_base_weights_is_one_line_and_leaves_nothing(tmp_path):
    """Outside of any trial: safetensors has errors of its own."""
    if os.geteuid():
        pytest.skip("only root may mount")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=True)
    try:
        with pytest.raises(DiskFault, match="No space left"):
            save_base(base(), tmp_path / "kept" / "base.safetensors")
        assert list((tmp_path / "kept").iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_checkpoint_that_cannot_be_removed_ends_nothing(tmp_path, caplog):
    if os.geteuid():
        pytest.skip("only root may mount")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=True)
    try:
        (tmp_path / "trial.pt").write_bytes(b"x")
        subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
        discard_checkpoint(tmp_path / "trial.pt")
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert "cannot be removed: Read-only file system" in caplog.text


def test_a_gpu_that_fails_ends_its_slots_process_and_no_other_trial(place, tmp_path):
    (tmp_path / "flag").touch()
    (tmp_path / "sitecustomize.py").write_text(BREAK_ONCE.format(flag=str(tmp_path / "flag")))
    done = forked.run(place, "tune", "--study", "tiny", "--workers", "2", "--json", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "the GPU failed under this process" in done.stderr
    assert "is started again (1 of 3 times)" in done.stderr
    assert json.loads(done.stdout)["complete"] == 3
    trials, _ = check_agreement(place)
    (lost,) = [trial for trial in trials if trial.state == "FAIL"]
    assert lost.reason == "worker-lost"
    assert [trial.params for trial in trials if trial.notes.get("retry_of") == lost.number] == [lost.params]


def test_a_gpu_that_fails_ends_a_lone_worker_and_the_next_call_goes_on(place, monkeypatch):
    def broken(stepper, *arguments):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    with monkeypatch.context() as patch:
        patch.setattr("xray_opt.trainer.step.Stepper.step", broken)
        done = place.run("tune", "--study", "tiny")
    assert (done.returncode, done.stderr.count("\nerror:")) == (9, 1), done.stderr
    assert "RUNNING" not in {trial.state for trial in trials_of(place, "tiny")}
    assert place.json("tune", "--study", "tiny", "--trials", "1")["complete"] == 1
    trials, _ = check_agreement(place)
    assert [trial.reason for trial in trials if trial.state == "FAIL"] == ["worker-lost"]


@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["in-process", "processes"])
def test_a_terminal_that_closes_ends_a_tune_as_ctrl_c_does(place, options):
    """The system sends SIGHUP, and takes the terminal away that lines are written to."""
    write_study(place, "hung", epochs=4)
    tune = ("tune", "--study", "hung", "--trials", "2", *options)
    pid, terminal = forked.fork_in_terminal(place, *tune)
    seen = b""
    while b"1/4" not in seen:
        seen += os.read(terminal, 4096)
    os.close(terminal)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 130
    trials = trials_of(place, "hung")
    assert "RUNNING" not in {trial.state for trial in trials}
    assert "interrupted" in {trial.reason for trial in trials}
    done = place.run(*tune[:5])
    assert done.returncode == 0, done.stderr
    check_agreement(place, "hung")


@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["in-process", "processes"])
def test_a_reader_of_the_lines_that_goes_away_ends_a_tune_as_ctrl_c_does(place, options):
    """As where the other side of ``ssh host 'xray-opt tune …' | tee log`` dies: nothing but a closed pipe tells."""
    write_study(place, "unread", epochs=4)
    tune = ("tune", "--study", "unread", "--trials", "2", *options)
    process = forked.fork(place, *tune)
    while "epoch 1/4" not in process.stderr.readline():
        assert process.poll() is None
    process.stderr.close()
    assert process.wait(forked.LONG) == 130
    trials = trials_of(place, "unread")
    assert "RUNNING" not in {trial.state for trial in trials}
    assert {trial.reason for trial in trials if trial.state == "FAIL"} == {"interrupted"}
    assert list((place.workspace.study_folder("unread") / "checkpoints").glob("*-trial-*.pt"))
    done = place.run(*tune[:5])
    assert done.returncode == 0, done.stderr
    check_agreement(place, "unread")


@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["in-process", "processes"])
def test_sigterm_hands_the_trials_back_though_mlflow_hangs(place, server, options):
    """Slurm and Kubernetes kill after 30 s, so the test does; the tracking server takes what comes and says nothing."""
    name = f"ended-{len(options)}"
    write_study(place, name, epochs=4)
    with Faulty(server) as front:
        tune = ("tune", "--study", name, "--trials", "2", "--tracking-uri", front.uri)
        process = forked.fork(place, *tune, *options)
        heard = Listening(process)
        heard.wait_for(r"trial \d+ · epoch 1/4")
        front.mood = "slow"
        process.send_signal(signal.SIGTERM)
        killer = threading.Timer(30, process.kill)
        killer.start()
        code, _ = heard.end()
        killer.cancel()
        assert code == 130, heard.text
        assert "hand their trials back" in heard.text or not options
        trials = trials_of(place, name)
        assert "RUNNING" not in {trial.state for trial in trials}
        assert {trial.reason for trial in trials if trial.state == "FAIL"} == {"interrupted"}
        kept = place.workspace.study_folder(name) / "checkpoints"
        assert list(kept.glob("*-trial-*.pt"))
        front.mood = "ok"
        done = place.run(*tune)
        assert done.returncode == 0, done.stderr
        both_agree(front, place, name)


def test_a_clock_that_jumps_back_loses_no_value(place, monkeypatch):
    """By a day between two epochs, as when a wrong clock is set."""
    real, jumped = time.time, []
    monkeypatch.setattr(time, "time", lambda: real() - (86_400 if len(jumped) else 0))
    from xray_opt.tracking import Run

    log_epoch = Run.log_epoch

    def log_and_jump(self, epoch):
        log_epoch(self, epoch)
        jumped.append(epoch)

    monkeypatch.setattr(Run, "log_epoch", log_and_jump)
    assert place.json("tune", "--study", "tiny", "--trials", "2")["complete"] == 2
    trials, runs = check_agreement(place)
    assert len(jumped) == sum(len(trial.intermediate) for trial in trials)
    parent = client(place).get_run(read_study("tiny", place.workspace).notes["mlflow_parent"])
    assert {parent.info.status, *(run.info.status for run in runs.values())} == {"FINISHED"}
