"""The manifest of the docs is a Job as Kubernetes takes one, and asks for nothing that it should not have."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
JOB = {"apiVersion", "kind", "metadata", "spec"}
SPEC = {"parallelism", "completions", "backoffLimit", "template"}
POD = {
    "restartPolicy",
    "terminationGracePeriodSeconds",
    "automountServiceAccountToken",
    "securityContext",
    "containers",
    "volumes",
}
CONTAINER = {"name", "image", "command", "args", "envFrom", "env", "securityContext", "resources", "volumeMounts"}


@pytest.fixture(scope="module")
def job():
    return yaml.safe_load((ROOT / "docs/kubernetes/worker-job.yaml").read_text())


def test_it_is_a_job_with_fields_that_kubernetes_knows(job):
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert set(job) <= JOB
    assert set(job["spec"]) <= SPEC
    pod = job["spec"]["template"]["spec"]
    assert set(pod) <= POD
    assert pod["restartPolicy"] in ("Never", "OnFailure")  # all that a Job may have
    (container,) = pod["containers"]
    assert set(container) <= CONTAINER
    assert all(isinstance(text, str) for text in (*container["command"], *container["args"]))
    assert all(isinstance(item["value"], str) for item in container["env"])


def test_every_mount_has_its_volume(job):
    pod = job["spec"]["template"]["spec"]
    mounts = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_it_runs_as_the_image_s_user_without_privileges(job):
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert f"--uid {pod['securityContext']['runAsUser']}" in (ROOT / "docker/worker/Dockerfile").read_text()
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["automountServiceAccountToken"] is False


def test_its_command_is_one_of_ours(job):
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["python3", "-m", "xray_opt"]
    assert container["args"][0] == "tune"
