"""Ray: how a cluster is divided, what cannot be is one line, and a node that dies in the middle costs nothing.

What every launcher must keep, Ray's too, is in ``test_launchers.py``. Skipped where Ray is not installed.
"""

import json
import os
import subprocess
import sys

import pytest
from conftest import Place, make_place
from mlflow_stores import tracking_server
from postgres_server import postgres
from test_launchers import Listening, trials_of, write_study
from test_workers import check_agreement

from xray_opt.config import Config, StudyConfig, Workspace, override
from xray_opt.errors import ConfigError
from xray_opt.launchers.choose import launcher_for

pytest.importorskip("ray", reason="no Ray here: install the extra ray")
from xray_opt.launchers.keeper import Keeper, Share
from xray_opt.launchers.on_ray import STORE, Nodes
from xray_opt.launchers.slots import Slot
from xray_opt.launchers.wire import Job
from xray_opt.tuning import Crew

CPU = StudyConfig("s", config=override(Config(), {"training.device": "cpu"}))


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core each on this machine; a dead one is noticed within seconds."""
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": STORE}
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}
    made = Cluster(True, head_node_args=small | {"include_dashboard": False, "_system_config": quick})
    made.add_node(**small)
    yield made
    made.shutdown()


def test_cores_are_divided_so_that_every_slot_fits_onto_a_node():
    assert Nodes(((8.0, 0.0),)).cpu_share(2) == Share(4.0)
    assert Nodes(((4.0, 0.0), (2.0, 0.0))).cpu_share(2) == Share(2.0)
    assert Nodes(((4.0, 0.0), (4.0, 0.0))).cpu_share(3) == Share(2.0)
    assert Nodes(((0.0, 0.0), (1.0, 0.0))).cpu_share(1) == Share(1.0)
    for count, nodes, words in [
        (3, ((1.0, 0.0), (1.0, 0.0)), "has 2 on 2 nodes"),
        (2, ((1.5, 0.0),), "has 1 on 1 node"),
        (1, (), "has 0 on 0 nodes"),
    ]:
        with pytest.raises(ConfigError, match=f"--workers {count} need a core each: the Ray cluster {words}$"):
            Nodes(nodes).cpu_share(count)


def test_gpus_are_divided_into_fractions():
    assert Nodes(((16.0, 2.0), (8.0, 1.0))).gpu_slots(1) == (3, Share(8.0, 1.0, 1))
    assert Nodes(((16.0, 2.0), (8.0, 0.0))).gpu_slots(2) == (4, Share(4.0, 0.5, 2))
    with pytest.raises(ConfigError, match=r"has no GPU on 1 node; use --workers instead"):
        Nodes(((16.0, 0.0),)).gpu_slots(1)
    with pytest.raises(ConfigError, match="--per-gpu 4 needs a core a slot"):
        Nodes(((2.0, 1.0),)).gpu_slots(4)


def test_options_that_contradict_each_other_are_refused_before_a_cluster_is_asked():
    for words, options, study in [
        ("--ray chooses the GPUs itself", {"gpus": "0,1"}, CPU),
        ("with --ray say --gpus all --per-gpu K", {"per_gpu": 2}, CPU),
        ("leave training.device at auto, not cpu", {"gpus": "all"}, CPU),
    ]:
        with pytest.raises(ConfigError, match=words):
            launcher_for(study, ray="127.0.0.1:1", **options)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "127.0.0.1:x", "ray://127.0.0.1:1"])
def test_a_cluster_that_does_not_answer_is_one_line(address):
    with pytest.raises(ConfigError, match=f"no Ray cluster answers at {address} ") as caught:
        launcher_for(CPU, ray=address)
    assert "\n" not in str(caught.value)


def test_without_ray_there_is_one_line(tmp_path):
    code = "import sys; sys.modules['ray'] = None; sys.argv[0] = 'xray-opt'; from xray_opt.cli import main; main()"
    env = os.environ | {"XRAY_OPT_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code, "tune", "--ray", "local"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "install xray-opt[ray], here and on every node" in done.stderr


def test_an_actor_tells_what_its_slot_tells_and_how_it_ended(tmp_path):
    """The actor itself, without Ray: a slot that finds no study says so, and its exit code comes back."""
    job = Job(CPU, tmp_path, "id", 1, None, Crew("c", frozenset()), None)
    keeper, events, code = Keeper(), [], None
    keeper.start(job.line(), Slot("slot 0", 1), Share(1.0), {})
    while code is None:
        more, code = keeper.news()
        events += more
    assert (code, [event["event"] for event in events]) == (6, ["error"])
    assert events[0]["line"] == "study s was deleted meanwhile: this worker stops"


@pytest.mark.slow
def test_what_a_cluster_of_several_nodes_cannot_do_is_one_line(cluster, tmp_path):
    place = make_place(tmp_path)
    ray = ("--ray", cluster.address)
    with postgres() as server:
        storage = server.database("ray")
        write_study(place, "far", storage=storage)
        for arguments, words in [
            (
                ("--study", "tiny", "--workers", "5", *ray),
                "--workers 5 need a core each: the Ray cluster has 2 on 2 nodes",
            ),
            (("--study", "tiny", "--gpus", "all", *ray, "--set", "training.device=auto"), "has no GPU on 2 nodes"),
            (("--study", "tiny", "--workers", "2", *ray), "cannot share a SQLite storage"),
            (("--study", "far", "--workers", "2", *ray), "cannot share an embedded MLflow store"),
        ]:
            done = place.fresh("tune", *arguments)
            assert (done.returncode, done.stderr.count("error:")) == (2, 1), done.stderr
            assert words in done.stderr.splitlines()[-1]
            assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_node_that_dies_in_mid_trial_costs_nothing(cluster, tmp_path, monkeypatch):
    place = make_place(tmp_path)
    (tmp_path / "mlflow").mkdir()
    with postgres() as server, tracking_server(tmp_path / "mlflow") as uri:
        storage = server.database("node")
        write_study(place, "node", epochs=8, storage=storage)
        arguments = ("tune", "--study", "node", "--trials", "4", "--tracking-uri", uri, "--json")
        process = place.start(*arguments, "--ray", cluster.address, "--workers", "2")
        heard = Listening(process)
        for slot in "01":
            heard.wait_for(rf"slot {slot} \(.*\) · trial \d+ · epoch 2/8")
        (other,) = [node for node in cluster.list_all_nodes() if node is not cluster.head_node]
        cluster.remove_node(other, allow_graceful=False)
        code, out = heard.end()
        assert code == 0, heard.text
        assert "was lost with its actor or its node and is started again (1 of 3 times)" in heard.text
        assert "Traceback" not in heard.text
        report = json.loads(out)
        assert (report["complete"] + report["pruned"], report["stopped"]) == (4, "done")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        trials, _ = check_agreement(place, "node", storage)
        assert [trial.state in ("COMPLETE", "PRUNED") for trial in trials].count(True) == 4
        (lost,) = [trial for trial in trials if trial.state == "FAIL"]
        assert lost.reason in ("worker-lost", "interrupted")
        (resumed,) = [
            trial for trial in trials_of(place, "node", storage) if trial.notes.get("retry_of") == lost.number
        ]
        assert (resumed.params, resumed.intermediate[1]) == (lost.params, lost.intermediate[1])


def test_the_options_reach_the_launcher(tmp_path):
    done = Place(Workspace(tmp_path), tmp_path).run("tune", "--ray", "127.0.0.1:1", "--study", "laptop")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "no Ray cluster answers at 127.0.0.1:1" in done.stderr
