"""Slots, GPUs and the lines between a call and its slots; the launchers' contract is in ``test_launchers.py``."""

import dataclasses
import os
import resource
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
from conftest import Place

from xray_opt.config import Config, StudyConfig, Workspace, find_study, load_study, override
from xray_opt.config.study_file import shipped_studies
from xray_opt.errors import (
    ConfigError,
    DeviceFault,
    DiskFault,
    StudyError,
    TooManyFailures,
    TrackingError,
    XrayError,
)
from xray_opt.launchers import gpus, member, processes, slots
from xray_opt.launchers.choose import launcher_for
from xray_opt.launchers.gpus import Gpu, chosen, memory_fraction, named, need, require_room, shared_how
from xray_opt.launchers.processes import Processes
from xray_opt.launchers.slots import Slot, cpu_slots, gpu_slots, threads_for
from xray_opt.launchers.wire import Job, Teller, error_of, read_event
from xray_opt.metrics import Scores
from xray_opt.trainer import Epoch
from xray_opt.tuning import Crew, TrialRecord
from xray_opt.workers import StudyWatcher, in_process

#: As NVML told it of a machine with two cards (`nvidia-smi --query-gpu=name,uuid,memory.free,memory.total`).
A100 = Gpu("NVIDIA A100-SXM4-40GB", "GPU-2f4f5a3c-95d3-1f0a-5c1e-6a1d5b0f6d11", 41_900_000_000, 42_949_672_960)
T4 = Gpu("Tesla T4", "GPU-90b1cf2d-3c9a-87d4-2b6e-c1c8e3fd1a22", 15_500_000_000, 16_106_127_360)
CARDS = [A100, T4]


@pytest.fixture
def cards(monkeypatch):
    """A machine with these two cards, as far as the launchers look."""
    monkeypatch.setattr(slots, "visible_gpus", lambda: CARDS)
    monkeypatch.setattr(slots, "has_gpu", lambda: True)


def study(**settings):
    return StudyConfig("s", config=override(Config(), settings))


@pytest.mark.parametrize("name", sorted(path.stem for path in shipped_studies().glob("*.yaml")))
def test_a_job_comes_out_of_its_line_as_it_went_in(name, tmp_path):
    given = load_study(find_study(name, Workspace(tmp_path)))
    given = dataclasses.replace(
        given,
        config=override(given.config, {"optimizer.learning_rate": 1 / 3, "data.root": "ä b/films"}),
        storage="postgresql://me:secret@host/db",
    )
    job = Job(given, tmp_path, "id", 7, 1.5, Crew("c", frozenset({2, 11})), 0.25)
    line = job.line()
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert Job.read(line) == job
    assert Job.read(dataclasses.replace(job, timeout=None, memory_fraction=None).line()).timeout is None


def told(tell):
    """The events that ``tell`` sends through a real pipe, whatever else is on it."""
    ours, theirs = os.pipe()
    os.write(theirs, b'a line of a library\n{"no": "event"}\n[1]\n{"event": "say", "li')  # cut short
    tell(Teller(theirs))
    os.close(theirs)
    with os.fdopen(ours, "rb") as lines:
        return [event for event in map(read_event, lines) if event]


def test_events_arrive_as_they_were_sent_whatever_noise_is_around_them():
    epoch = Epoch(2, 0.5, 0.25, Scores(0.5, float("nan"), 0.5, 0.5, 0.5), 1e-3, 2.5, True, 99.0)
    record = TrialRecord(3, "PRUNED", {"lora.rank": 4}, None, {1: 0.5, 2: 0.25}, {"a": 1}, None, 2.0, None, None)

    def tell(teller):
        watcher = teller.watcher()
        watcher.say("ä\nb")
        watcher.trial_started(3, study(), {"lora.rank": 4})
        watcher.epoch(3, epoch)
        watcher.trial_ended(record)
        teller.error(StudyError("two\nlines"))

    say, started, one, ended, error = told(tell)
    assert (say["line"], started["trial"], started["params"]) == ("ä\nb", 3, {"lora.rank": 4})
    assert repr(Epoch.from_plain(one["epoch"])) == repr(epoch)  # NaN is not equal to itself
    assert TrialRecord.from_dict(ended["record"]) == record
    assert str(error_of(error)) == "two lines"


@pytest.mark.parametrize(
    "error",
    [StudyError("x"), TooManyFailures("w"), TrackingError("y"), XrayError("z"), DeviceFault("g"), DiskFault("d")],
)
def test_an_error_keeps_its_class_and_its_exit_code(error):
    class Stray(XrayError):
        """Of another place than the tree of errors, with the exit code of its root."""

    (event,) = told(lambda teller: teller.error(error))
    again = error_of(event)
    assert (type(again), again.exit_code, str(again)) == (type(error), error.exit_code, str(error))
    assert Stray in XrayError.__subclasses__()


def test_nobody_listening_is_no_error():
    ours, theirs = os.pipe()
    os.close(ours)
    teller = Teller(theirs)
    with pytest.raises(BrokenPipeError):
        os.write(theirs, b"x")  # truly nobody
    assert [teller.tell("say", line="x" * 100_000) for _ in range(2)] == [None, None]  # not even a lock is left held
    os.close(theirs)


def test_a_slot_whose_parent_is_gone_before_the_job_ends_at_once():
    done = subprocess.run(
        [sys.executable, "-m", "xray_opt.launchers.slot", "1"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def team(monkeypatch, tmp_path, program, say, count=2):
    """Slots whose processes, real ones, run ``program``; each knows itself by its number of threads, from 1."""
    monkeypatch.setattr(member, "PROGRAM", ("-c", program))
    given = [Slot(f"slot {index}", index + 1) for index in range(count)]
    job = Job(study(), tmp_path, "id", 1, None, Crew("c", frozenset()), None)
    work = SimpleNamespace(watcher=StudyWatcher(say=say))
    return processes._Team(lambda news: [member.Member(slot, news) for slot in given], job, work)


def test_slots_have_their_time_to_end_whatever_is_wrong_with_whoever_listens(monkeypatch, tmp_path):
    program = f"""
import os, pathlib, signal, sys, time
def end(*_):
    print('ending', flush=True)
    time.sleep(0.5)
    (pathlib.Path({str(tmp_path)!r}) / os.environ['OMP_NUM_THREADS']).touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, end)
print('up', os.environ['OMP_NUM_THREADS'], flush=True)
time.sleep(600)
"""
    said = []

    def say(line):
        said.append(line)
        if len(said) > 1:  # both are up
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        team(monkeypatch, tmp_path, program, say).run()
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]


def test_a_slot_that_cannot_be_started_again_is_given_up_and_the_others_go_on(monkeypatch, tmp_path):
    program = f"""
import os, pathlib, time
if os.environ['OMP_NUM_THREADS'] == '2':
    os.kill(os.getpid(), 9)
while not (pathlib.Path({str(tmp_path)!r}) / 'given up').exists():
    time.sleep(0.02)
"""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    said = []

    def say(line):
        said.append(line)
        if "started again" in line:  # no file is left for its pipes
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        else:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            (tmp_path / "given up").touch()

    try:
        one = team(monkeypatch, tmp_path, program, say)
        one.run()
        one.require_one_that_worked()
        assert said == [
            "slot 1 was killed (SIGKILL; out of memory?) and is started again (1 of 3 times)",
            "slot 1 is given up: cannot start slot 1: Too many open files; use fewer slots",
        ]
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        with pytest.raises(StudyError, match="cannot start slot 0: Too many open files; use fewer slots"):
            team(monkeypatch, tmp_path, program, say).run()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_slot_that_nobody_can_listen_to_is_not_left_running(monkeypatch, tmp_path):
    def no_thread(self, stream, read):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(member.Member, "_listen", no_thread)
    one = team(monkeypatch, tmp_path, "import time; time.sleep(600)", print, count=1)
    with pytest.raises(StudyError, match="cannot start slot 0: can't start new thread"):
        one.run()
    assert not [child for child in psutil.Process().children() if "time.sleep(600)" in " ".join(child.cmdline())]


def test_the_cores_are_divided_among_the_slots(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert [threads_for(count, {}) for count in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
    assert threads_for(2, {"OMP_NUM_THREADS": "3"}) == 3
    assert threads_for(4, {"OMP_NUM_THREADS": "3"}) == 2
    assert threads_for(4, {"OMP_NUM_THREADS": "2,1"}) == 2
    assert threads_for(4, {"OMP_NUM_THREADS": "many"}) == 2
    assert Slot("s", 4, "GPU-1").environment() == {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "GPU-1"}
    assert Slot("s", 4).environment() == {"OMP_NUM_THREADS": "4"}


def test_gpus_are_chosen_by_their_place_among_the_visible_ones():
    assert chosen("all", CARDS) == CARDS
    assert chosen("1", CARDS) == [T4]
    assert chosen(" 1 , 0", CARDS) == [T4, A100]
    for text, words in [
        ("2", "there is no GPU 2; there is 0 to 1"),
        ("0,0", "names a GPU twice"),
        ("", "numbers such as 0,1 or all"),
        ("a", "numbers such as 0,1 or all"),
        ("-1", "numbers such as 0,1 or all"),
        ("0;1", "numbers such as 0,1 or all"),
    ]:
        with pytest.raises(ConfigError, match=words) as caught:
            chosen(text, CARDS)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"there is 0$"):
        chosen("1", CARDS[:1])


def test_what_cuda_visible_devices_hides_is_not_there():
    assert [gpu.name for gpu in named(["1"], CARDS, {})] == ["Tesla T4"]
    # The slot's variable keeps the user's own name: CUDA may count otherwise than NVML does.
    assert [gpu.uuid for gpu in named(["1", "0"], CARDS, {})] == ["1", "0"]
    assert [gpu.name for gpu in named(["GPU-90b1"], CARDS, {})] == ["Tesla T4"]
    # As for CUDA, the first wrong name ends the list.
    assert [gpu.uuid for gpu in named(["0", "-1", "1"], CARDS, {})] == ["0"]
    part = Gpu("NVIDIA A100 MIG 1g.5gb", "MIG-1", 5, 5)
    assert named(["MIG-1"], CARDS, {"MIG-1": part}) == [part]
    for names in ([""], ["-1"], ["7"], ["NoDevFiles"]):
        with pytest.raises(ConfigError, match="shows no GPU; unset it"):
            named(names, CARDS, {})


def test_slots_that_cannot_fit_are_refused_with_what_would_fit():
    assert require_room(A100, 4, 384, 16) == ""
    line = require_room(T4, 8, 384, 16)
    assert "halved" in line
    assert f"--per-gpu {T4.free // need(384, 16)} may be faster" in line
    with pytest.raises(ConfigError, match="--per-gpu 64 does not fit") as caught:
        require_room(T4, 64, 384, 16)
    assert f"--per-gpu {T4.free // need(384, 1)} would fit" in str(caught.value)
    full = dataclasses.replace(T4, free=100_000_000)
    with pytest.raises(ConfigError, match=r"free some of it, or lower image\.size"):
        require_room(full, 2, 384, 16)
    # What is said to fit does.
    assert require_room(T4, T4.free // need(384, 1), 384, 1) == ""


def test_slots_of_one_gpu_share_what_is_free():
    assert memory_fraction(A100, 1) is None
    for gpu in (A100, T4, dataclasses.replace(T4, free=T4.free // 2)):
        for count in (2, 3, 4):
            taken = count * (memory_fraction(gpu, count) * gpu.total + gpus.CONTEXT)
            assert 0.9 * gpu.free < taken <= gpu.free


def test_gpu_slots_are_named_and_see_one_gpu_each(cards):
    said = []
    found = gpu_slots("all", 2, study(), said.append)
    assert [slot.gpu for slot in found] == [A100.uuid] * 2 + [T4.uuid] * 2
    assert len({slot.name for slot in found}) == 4
    assert said == [shared_how()]
    assert {slot.settings(study()).config.training.device for slot in found} == {"cuda"}
    assert Slot("s", 1).settings(study()) == study()
    assert [slot.memory_fraction for slot in gpu_slots("0", 1, study(), said.append)] == [None]
    assert len(said) == 1


def test_an_mps_daemon_is_said_and_never_started(tmp_path):
    assert "take turns" in shared_how({"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)})
    (tmp_path / "control").touch()
    assert f"through the MPS daemon of {tmp_path}" in shared_how({"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)})


def test_the_options_choose_a_launcher(cards, monkeypatch):
    cpu = study(**{"training.device": "cpu"})
    assert launcher_for(cpu) is in_process
    assert launcher_for(cpu, workers=1) is in_process
    assert launcher_for(cpu, workers=3) == Processes(cpu_slots(3, cpu))
    assert launcher_for(study(), gpus="1", per_gpu=2) == Processes(gpu_slots("1", 2, study()))
    for words, options, of in [
        ("--workers and --gpus exclude each other", {"workers": 2, "gpus": "0"}, study()),
        ("name these with --gpus", {"per_gpu": 2}, study()),
        ("name these with --gpus", {"per_gpu": 2, "workers": 2}, study()),
        ("use --gpus all --per-gpu 2", {"workers": 2}, study()),
        ("use --gpus all --per-gpu 2", {"workers": 2}, study(**{"training.device": "cuda:1"})),
        ("leave training.device at auto, not cpu", {"gpus": "0"}, cpu),
        ("there is no GPU 5", {"gpus": "0,5"}, study()),
        ("do not fit into memory", {"workers": 100_000}, cpu),
    ]:
        with pytest.raises(ConfigError, match=words):
            launcher_for(of, **options)
    monkeypatch.setattr(slots, "has_gpu", lambda: False)
    assert launcher_for(study(), workers=2) == Processes(cpu_slots(2, study()))


def test_on_a_machine_without_gpus_gpu_options_are_one_line(tmp_path):
    if gpus.has_gpu({}):
        pytest.skip("there is a GPU here")
    for options, words in [
        (("--gpus", "0"), "no NVIDIA GPU can be used here"),
        (("--gpus", "all", "--per-gpu", "2"), "no NVIDIA GPU can be used here"),
        (("--per-gpu", "2"), "name these with --gpus"),
        (("--workers", "2", "--gpus", "0"), "exclude each other"),
        (("--workers", "0"), "--workers"),
        (("--workers", "x"), "--workers"),
    ]:
        done = Place(Workspace(tmp_path), tmp_path).run("tune", *options)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert words in done.stderr


@pytest.mark.skipif(not gpus.has_gpu(), reason="no NVIDIA GPU here")
def test_the_gpus_of_this_machine_can_be_had():
    found = gpus.visible_gpus()
    assert all(gpu.uuid and 0 < gpu.free <= gpu.total for gpu in found)
    (slot,) = gpu_slots("0", 1, study())
    code = "import torch; print(torch.cuda.device_count())"
    env = os.environ | slot.environment()
    assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout == "1\n"
    first, second = gpu_slots("0", 2, study())
    assert first.gpu == second.gpu
    code = (
        "import torch; from xray_opt.launchers.slot import _limit_memory; _limit_memory(0.01)\n"
        "try: torch.empty(torch.cuda.mem_get_info()[1] // 50, dtype=torch.uint8, device='cuda')\n"
        "except torch.OutOfMemoryError: print('kept')"
    )
    env = os.environ | first.environment()
    assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout == "kept\n"
