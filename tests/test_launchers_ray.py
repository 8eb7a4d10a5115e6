"""Ray: how a cluster is divided, what cannot be is one line, and a node that dies in the middle costs nothing.

What every launcher must keep, Ray's too, is in ``test_launchers.py``. Skipped where Ray is not installed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial

import forked
import psutil
import pytest
from conftest import Place, make_place
from mlflow_stores import tracking_server
from postgres_server import postgres
from ray_cluster import LONG, WHY, Cluster, running_cluster
from test_launchers import Listening, ends_of, write_study
from test_workers import check_agreement

from xray_opt.config import Config, StudyConfig, Workspace, override
from xray_opt.errors import ConfigError
from xray_opt.launchers.choose import launcher_for

pytest.importorskip("ray", reason=WHY)
from xray_opt.launchers.keeper import Keeper, Share
from xray_opt.launchers.ray_nodes import Nodes
from xray_opt.launchers.slots import Slot
from xray_opt.launchers.wire import Job
from xray_opt.tuning import Crew

CPU = StudyConfig("s", config=override(Config(), {"training.device": "cpu"}))


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


def children():
    """Slots that this process has started and that are not over."""
    found = psutil.Process().children()
    return sum("xray_opt.launchers.slot" in one.cmdline() for one in found if one.status() != psutil.STATUS_ZOMBIE)


def test_an_actor_tells_what_its_slot_tells_and_how_it_ended(tmp_path):
    """The actor itself, without Ray: a slot that finds no study says so, and its exit code comes back, though answers
    are lost.
    """
    job = Job(CPU, tmp_path, "id", 1, None, Crew("c", frozenset()), None)
    keeper, events, code = Keeper(), [], None
    start = partial(keeper.start, line=job.line(), slot=Slot("slot 0", 1), share=Share(1.0), variables={}, folder=".")
    start(0)
    start(0)  # whose first answer was lost
    while code is None:
        keeper.news(len(events))  # an answer that is lost, and asked for again
        more, code = keeper.news(len(events))
        events += more
    assert keeper.news(len(events)) == ([], 6) == keeper.news(len(events))
    assert (code, [event["event"] for event in events]) == (6, ["error"])
    assert events[0]["line"] == "study s was deleted meanwhile: this worker stops"
    start(0)  # a call that was underway for long, and arrives when all is over
    assert not keeper._member.runs
    assert keeper.news(len(events)) == ([], 6)
    start(1)
    start(0)
    first = keeper._member
    assert (first.runs, children()) == (True, 1)
    start(1)
    assert (keeper._member, children()) == (first, 1)
    keeper.stop()
    while keeper.news(len(events))[1] is None:
        pass


def test_an_actor_that_was_told_to_stop_starts_nothing(tmp_path):
    """The call that starts its slot arrives after the one that stops it."""
    keeper = Keeper()
    keeper.stop()
    keeper.start(0, b"no job", Slot("slot 0", 1), Share(1.0), {}, str(tmp_path))
    assert keeper.news(0) == ([], 130)
    assert children() == 0


def test_the_options_reach_the_launcher(tmp_path):
    done = Place(Workspace(tmp_path), tmp_path).run("tune", "--ray", "127.0.0.1:1", "--study", "laptop")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "no Ray cluster answers at 127.0.0.1:1" in done.stderr


@dataclass(frozen=True)
class Far:
    """A workspace whose stores all machines reach, and another machine on which its films and caches are copies."""

    place: Place
    storage: str
    uri: str
    cluster: Cluster

    def machine(self, name, films):
        """One more machine with these films, and what its node wrote: manifests and caches."""
        own = {
            getattr(self.place.workspace, what): self.cluster.folder / name / what for what in ("manifests", "caches")
        }
        for path, folder in own.items():
            folder.mkdir(parents=True)
            path.mkdir(exist_ok=True)
        return self.cluster.far(name, {self.place.films: films} | own), self.cluster.folder / name

    def tune(self, study, trials):
        """The arguments of a call of two slots."""
        ray = ("--ray", self.cluster.address, "--workers", "2")
        return ("tune", "--study", study, "--trials", trials, "--tracking-uri", self.uri, *ray, "--json")


@pytest.fixture(scope="module")
def far(tmp_path_factory, ray_cluster):
    folder = tmp_path_factory.mktemp("far")
    (folder / "mlflow").mkdir()
    with postgres() as server, tracking_server(folder / "mlflow") as uri:
        yield Far(make_place(folder / "place"), server.database("far"), uri, ray_cluster)


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    forked.end_all()


@pytest.fixture(scope="module")
def second(far):
    """A machine with a copy of the films."""
    films = shutil.copytree(far.place.films, far.cluster.folder / "films")
    return far.machine("second", films)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "arguments", "words"),
    [
        ("tiny", ("--workers", "5"), "--workers 5 need a core each: the Ray cluster has 2 on 2 nodes"),
        ("tiny", ("--gpus", "all", "--set", "training.device=auto"), "the Ray cluster has no GPU on 2 nodes"),
        ("tiny", ("--workers", "2"), "cannot share a SQLite storage"),
        ("shared", ("--workers", "2"), "cannot share an embedded MLflow store"),
    ],
)
def test_what_a_cluster_of_several_machines_cannot_do_is_one_line(far, second, study, arguments, words):
    write_study(far.place, "shared", storage=far.storage)
    done = far.place.run("tune", "--study", study, *arguments, "--ray", far.cluster.address)
    assert (done.returncode, done.stderr.count("error:")) == (2, 1), done.stderr
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_cluster_that_wants_a_token_is_one_line(far):
    code = (
        "import sys; from xray_opt.config import StudyConfig; from xray_opt.errors import ConfigError\n"
        "from xray_opt.launchers.choose import launcher_for\n"
        "try: launcher_for(StudyConfig('s'), ray=sys.argv[1])\n"
        "except ConfigError as error: print(error)"
    )
    env = os.environ | {"RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-c", code, far.cluster.address]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=LONG)
    assert (done.returncode, done.stdout.count("\n")) == (0, 1), done.stderr
    assert done.stdout.startswith(f"cannot use the Ray cluster {far.cluster.address}: ")
    assert done.stdout.endswith("where it wants a token, set RAY_AUTH_MODE=token and its RAY_AUTH_TOKEN\n")


@pytest.mark.slow
def test_a_machine_that_is_lost_in_mid_trial_costs_nothing(far, second, monkeypatch):
    """It has checked its own copy of the films and decoded them itself; then everything on it dies at once."""
    node, own = second
    write_study(far.place, "lost", epochs=12, storage=far.storage)
    process = forked.fork(far.place, *far.tune("lost", "4"))
    heard = Listening(process)
    number = int(heard.wait_for(r"slot \d \(second\) · trial (\d+) · epoch 2/12")[1])
    node.kill()
    code, out = heard.end()
    assert (code, "Traceback" in heard.text) == (0, False), heard.text
    assert re.search(r"slot \d \(second\) was lost with its actor or its node and is started again", heard.text)
    report = json.loads(out)
    assert (report["complete"] + report["pruned"], report["failed"], report["stopped"]) == (4, 1, "done")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", far.uri)
    trials, _ = check_agreement(far.place, "lost", far.storage)
    assert [trial.state in ("COMPLETE", "PRUNED") for trial in trials].count(True) == 4
    (lost,) = [trial for trial in trials if trial.state == "FAIL"]
    (resumed,) = [trial for trial in trials if trial.notes.get("retry_of") == lost.number]
    assert (lost.number, lost.reason, resumed.params) == (number, "worker-lost", lost.params)
    assert resumed.intermediate[1] == lost.intermediate[1]
    assert len(list((own / "manifests").glob("*.csv"))) == 1
    assert len(list((own / "caches").glob("*"))) == len(list(far.place.workspace.caches.glob("*")))


@pytest.mark.slow
def test_a_machine_with_other_films_is_refused_and_the_others_do_its_part(far, monkeypatch):
    films = shutil.copytree(far.place.films, far.cluster.folder / "other-films")
    one, other, *_ = sorted(path for path in films.rglob("*") if path.suffix in (".png", ".jpeg", ".jpg"))
    shutil.copy(one, other)
    node, _ = far.machine("stranger", films)
    write_study(far.place, "strange", epochs=16, storage=far.storage)  # it is not over before the stranger is refused
    try:
        done = forked.run(far.place, *far.tune("strange", "2"))
    finally:
        node.kill()
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "(stranger) stopped:" in line]
    assert re.search(
        r"the films in \S+ on stranger are not those of the study: their digest is \w{12}, not \w{12}", line
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", far.uri)
    trials, _ = check_agreement(far.place, "strange", far.storage)
    assert [trial.state for trial in trials] == ["COMPLETE"] * 2


@pytest.mark.slow
def test_a_cluster_whose_head_is_lost_is_one_line_and_the_same_command_goes_on(tmp_path, monkeypatch):
    """Its nodes, and Ray in the call, give it five seconds here to come back."""
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "5")
    place = make_place(tmp_path)
    write_study(place, "headless", epochs=12)
    with running_cluster() as cluster:
        arguments = ("tune", "--study", "headless", "--trials", "1", "--ray", cluster.address, "--json")
        process = forked.fork(place, *arguments)
        heard = Listening(process)
        heard.wait_for(r"trial 0 · epoch 2/12")
        head, began = cluster.nodes[0], time.monotonic()
        (server,) = [one for one in psutil.Process(head.process.pid).children(True) if one.name() == "gcs_server"]
        server.kill()
        code, _ = heard.end()
        assert time.monotonic() - began < 120
        assert (code, heard.text.count("error:"), "Traceback" in heard.text) == (6, 1, False), heard.text
        assert heard.lines[-1].startswith(f"error: the Ray cluster {cluster.address} is lost: ")
        ((state, reason),) = [end for end in ends_of(place, "headless") if end[0] != "WAITING"]
        assert (state, reason in ("interrupted", "worker-lost")) == ("FAIL", True)
        head.kill()
        cluster.start()
        done = forked.run(place, *arguments)
        assert done.returncode == 0, done.stderr
    trials, _ = check_agreement(place, "headless")
    assert [trial.state for trial in trials] == ["FAIL", "COMPLETE"]
    assert trials[1].intermediate[1] == trials[0].intermediate[1]


@pytest.mark.slow
def test_a_ray_of_ones_own_starts_and_ends_with_the_call(tmp_path):
    place = make_place(tmp_path)
    arguments = ("tune", "--study", "tiny", "--ray", "local", "--workers", "2", "--json")
    report = json.loads(forked.run(place, *arguments).stdout)
    assert (report["complete"], report["stopped"]) == (3, "done")
    check_agreement(place)
