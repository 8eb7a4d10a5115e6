"""The templates for Slurm and Kubernetes: read as those would, and run by a local shell in their place."""

import copy
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import yaml
from conftest import make_place
from lightkube.models.batch_v1 import Job
from test_launchers import Listening
from test_workers import check_agreement

from xray_opt.errors import TooManyFailures

ROOT = Path(__file__).parent.parent
SLURM = ROOT / "deploy" / "slurm-array.sh"
JOB = yaml.safe_load((ROOT / "deploy" / "kubernetes-job.yaml").read_text())
POD = JOB["spec"]["template"]["spec"]
WORKER = POD["containers"][0]


def environment(place, folder, **more):
    """As on a node: the command on the path, the shared stores in variables; no srun."""
    folder.mkdir(exist_ok=True)
    for name, what in (("xray-opt", "-m xray_opt "), ("python3", "")):
        command = folder / name
        if command.exists():  # another task may run it: it is busy
            continue
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" {what}"$@"\n')
        command.chmod(0o755)
    stores = {
        "XRAY_OPT_STORAGE": f"sqlite:///{place.workspace.root}/shared.db",
        "MLFLOW_TRACKING_URI": place.workspace.mlflow_uri,
    }
    path = os.pathsep.join((str(folder), os.environ["PATH"]))
    return place.environment() | stores | {"PATH": path, "PYTHONPATH": str(ROOT)} | more


def start(command, place, env):
    return subprocess.Popen(
        command, cwd=place.workspace.root, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def done(processes):
    return [(process.wait(500), process.stderr.read()) for process in processes]


def check(place, total):
    trials, _ = check_agreement(place, "tiny", f"sqlite:///{place.workspace.root}/shared.db")
    assert sum(trial.state in ("COMPLETE", "PRUNED") for trial in trials) == total
    return trials


def test_the_slurm_script_is_what_sbatch_reads():
    text = SLURM.read_text()
    subprocess.run(["bash", "-n", SLURM], check=True)
    assert text.startswith("#!/usr/bin/env bash\n")
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, flags=re.MULTILINE))
    assert options["array"] == "0-7"
    assert options["signal"] == "B:TERM@60"
    # sbatch reads options up to the first command.
    assert text.rindex("#SBATCH") < text.index("\nset ")


def test_the_slurm_script_names_what_is_missing(tmp_path):
    for missing in ("STUDY", "TRIALS", "XRAY_OPT_STORAGE", "MLFLOW_TRACKING_URI"):
        wanted = {"STUDY": "s", "TRIALS": "1", "XRAY_OPT_STORAGE": "sqlite:///s.db", "MLFLOW_TRACKING_URI": "x"}
        env = {"PATH": os.environ["PATH"]} | {key: value for key, value in wanted.items() if key != missing}
        answer = subprocess.run(["bash", SLURM], env=env, capture_output=True, text=True, cwd=tmp_path)
        assert answer.returncode != 0
        assert f"{missing}: " in answer.stderr


@pytest.mark.slow
def test_two_slurm_tasks_share_a_study(tmp_path):
    place = make_place(tmp_path / "place", stored=False)  # both begin with empty stores
    tasks = [
        start(
            ["bash", str(SLURM)],
            place,
            environment(place, tmp_path / "bin", STUDY="tiny", TRIALS="3", SLURM_ARRAY_TASK_ID=str(number)),
        )
        for number in range(2)
    ]
    assert [code for code, _ in done(tasks)] == [0, 0]
    check(place, 3)


@pytest.mark.slow
def test_a_slurm_task_whose_time_is_up_hands_its_trial_back(tmp_path):
    place = make_place(tmp_path / "place")
    env = environment(place, tmp_path / "bin", STUDY="tiny", TRIALS="2", SLURM_ARRAY_TASK_ID="0")
    task = start(["bash", str(SLURM)], place, env)
    heard = Listening(task)
    heard.wait_for(r"trial 0 · epoch 1/2")
    task.send_signal(signal.SIGTERM)
    assert heard.end()[0] == 130
    assert [code for code, _ in done([start(["bash", str(SLURM)], place, env)])] == [0]
    trials = check(place, 2)
    assert [trial.reason for trial in trials if trial.state == "FAIL"] == ["interrupted"]


def refused(job):
    """Why a Job of batch/v1 is none, by Kubernetes' own types; empty where it is one.

    A name that no type has is left out on the way there and back. Choices among words, and amounts, are text to the
    types: those that we use are checked by hand below.
    """
    try:
        taken = msgspec.to_builtins(msgspec.convert(job, Job))
    except msgspec.ValidationError as error:
        return str(error)
    return "" if taken == job else "it has names that Kubernetes does not know"


def test_the_job_has_the_names_and_types_of_batch_v1():
    assert refused(JOB) == ""


@pytest.mark.parametrize(
    ("where", "value", "why"),
    [
        (("spec", "paralelism"), 8, "names that Kubernetes does not know"),
        (("spec", "template", "spec", "containers", 0, "envfrom"), [], "names that Kubernetes does not know"),
        (("spec", "completions"), "8", r"Expected `int \| null`, got `str` - at `\$\.spec\.completions`"),
        (("spec", "template", "spec", "containers", 0, "env", 1, "value"), 100, r"got `int` - at `.*env\[1\]\.value`"),
        (
            ("spec", "podFailurePolicy", "rules", 0, "onExitCodes"),
            {"operator": "In"},
            "missing required field `values`",
        ),
        (("spec", "template"), None, r"at `\$\.spec\.template`"),
    ],
)
def test_a_fault_in_the_job_is_found(where, value, why):
    broken = copy.deepcopy(JOB)
    inner = broken
    for step in where[:-1]:
        inner = inner[step]
    inner[where[-1]] = value
    assert re.search(why, refused(broken))


def test_the_job_is_one_that_kubernetes_takes():
    assert (JOB["apiVersion"], JOB["kind"]) == ("batch/v1", "Job")
    # A Job with podFailurePolicy takes no other one.
    assert POD["restartPolicy"] == "Never"
    stop, evicted = JOB["spec"]["podFailurePolicy"]["rules"]
    codes = {"containerName": WORKER["name"], "operator": "In", "values": [TooManyFailures.exit_code]}
    assert (stop["action"], stop["onExitCodes"]) == ("FailJob", codes)
    assert (evicted["action"], evicted["onPodConditions"]) == ("Ignore", [{"type": "DisruptionTarget"}])
    assert JOB["spec"]["completionMode"] == "Indexed"
    assert JOB["spec"]["parallelism"] <= JOB["spec"]["completions"]
    # Slots have 20 seconds, and their call a few more.
    assert POD["terminationGracePeriodSeconds"] >= 30
    assert all(re.fullmatch(r"\d+(Mi|Gi)?", str(amount)) for amount in _amounts())
    mounts, volumes = ({item["name"] for item in where} for where in (WORKER["volumeMounts"], POD["volumes"]))
    assert mounts == volumes
    assert all(isinstance(item.get("value", ""), str) for item in WORKER["env"])
    names = {item["name"] for item in WORKER["env"]}
    assert set(re.findall(r"\$([A-Z_]+)", WORKER["command"][-1])) <= names


def _amounts():
    """Amounts of memory, processors and devices, as Kubernetes spells them."""
    yield from (one for kind in ("requests", "limits") for one in WORKER["resources"][kind].values())
    yield from (volume["emptyDir"]["sizeLimit"] for volume in POD["volumes"] if "emptyDir" in volume)


def test_the_job_runs_as_the_user_of_its_image_without_privileges():
    assert POD["automountServiceAccountToken"] is False
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert f"--uid {POD['securityContext']['runAsUser']} " in (ROOT / "docker/worker/Dockerfile").read_text()
    assert WORKER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.slow
def test_two_pods_share_a_study(tmp_path):
    place = make_place(tmp_path / "place", stored=False)
    values = {item["name"]: item["value"] for item in WORKER["env"] if "value" in item}
    ours = {"STUDY": "tiny", "TRIALS": "3", "TUNE_OPTIONS": "--device cpu", "XRAY_OPT_HOME": str(place.workspace.root)}
    env = environment(place, tmp_path / "bin", **values | ours | {"TMPDIR": str(tmp_path)})
    pods = [start(WORKER["command"], place, env) for _ in range(2)]
    assert [code for code, _ in done(pods)] == [0, 0]
    check(place, 3)
