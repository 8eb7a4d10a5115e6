"""The parts of the tuning room: space, samplers, pruners, rules, storage, what can be asked of studies."""

import os
import subprocess
import time
import warnings
from dataclasses import replace

import optuna
import pytest

from xray_opt.config import Parameter, PrunerConfig, SamplerConfig, StudyConfig, Workspace, override
from xray_opt.errors import ConfigError, StudyError, one_line
from xray_opt.tuning import (
    Outcome,
    StudyRecord,
    TrialRecord,
    annotate,
    delete_study,
    importances,
    list_studies,
    open_study,
    read_study,
    storage_digest,
    storage_url,
)
from xray_opt.tuning.owners import at_work, is_dead, is_elsewhere, started, this_worker
from xray_opt.tuning.pruners import pruner_for
from xray_opt.tuning.rules import first_difference
from xray_opt.tuning.samplers import sampler_for
from xray_opt.tuning.space import suggest
from xray_opt.tuning.storage import open_storage
from xray_opt.tuning.urls import masked

SPACE = (
    Parameter("optimizer.learning_rate", "float", low=1e-5, high=1e-2, log=True),
    Parameter("training.batch_size", "int", low=8, high=32, step=8),
    Parameter("model.strategy", "categorical", choices=("lora", "linear")),
    Parameter("lora.rank", "categorical", choices=(4, 8), when={"model.strategy": "lora"}),
)
STUDY = StudyConfig("fast", space=SPACE, sampler=SamplerConfig(startup_trials=2), pruner=PrunerConfig("none"))


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


def run(workspace, study=STUDY, total=6):
    def objective(trial):
        trial.report(1, trial.params["optimizer.learning_rate"])
        return Outcome(trial.params["optimizer.learning_rate"])

    return open_study(study, workspace, "d" * 64).tune(objective, total)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_storage_in_memory_is_refused(url):
    """A study there would be lost with its call, and slots would not find it."""
    with pytest.raises(ConfigError, match="in memory") as caught:
        open_storage(url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("port", [0, 65536, 99999])
def test_a_port_that_is_none_is_refused(port):
    """gRPC would count on from 0, and ask whoever is there."""
    with pytest.raises(ConfigError, match="from 1 to 65535"):
        open_storage(f"grpc://localhost:{port}")


def test_suggestions_have_their_types_and_bounds():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(40):
        params = suggest(study.ask(), SPACE, STUDY.config)
        assert 1e-5 <= params["optimizer.learning_rate"] <= 1e-2
        assert params["training.batch_size"] in (8, 16, 24, 32)
        assert ("lora.rank" in params) == (params["model.strategy"] == "lora")
        assert override(STUDY.config, params)


def test_a_condition_sees_fixed_settings_too():
    fixed = override(STUDY.config, {"model.strategy": "linear"})
    trial = optuna.create_study().ask()
    assert suggest(trial, SPACE[3:], fixed) == {}
    assert "lora.rank" in suggest(trial, SPACE[3:], STUDY.config)


def test_a_condition_on_a_parameter_that_was_not_asked_for_does_not_hold():
    chained = Parameter("lora.dropout", "float", low=0.0, high=0.5, when={"lora.rank": STUDY.config.lora.rank})
    trial = optuna.create_study().ask({"model.strategy": optuna.distributions.CategoricalDistribution(("linear",))})
    space = (replace(SPACE[2], choices=("linear",)), SPACE[3], chained)
    assert suggest(trial, space, STUDY.config) == {"model.strategy": "linear"}


def test_qmc_draws_anew_what_lies_outside_its_sequence(workspace):
    rank = Parameter("lora.rank", "int", low=1, high=256, when={"model.strategy": "lora"})
    good = ({"model.strategy": "linear", "optimizer.learning_rate": 1e-3},)
    study = replace(STUDY, space=(SPACE[0], SPACE[2], rank), sampler=SamplerConfig("qmc"), enqueue=good)
    run(workspace, study, 12)
    ranks = [trial.params["lora.rank"] for trial in read_study("fast", workspace).trials if "lora.rank" in trial.params]
    assert len(set(ranks)) == len(ranks) > 2


@pytest.mark.parametrize("name", ["tpe", "random", "qmc"])
def test_every_sampler_runs_and_repeats_itself(tmp_path, name):
    values = []
    for place in ("a", "b"):
        workspace = Workspace(tmp_path / place)
        study = StudyConfig(
            "fast", space=SPACE[:2], sampler=SamplerConfig(name, startup_trials=2), pruner=PrunerConfig("none")
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(workspace, study)
        values.append([dict(trial.params) for trial in read_study("fast", workspace).trials])
    assert values[0] == values[1]
    assert len({p["optimizer.learning_rate"] for p in values[0]}) == 6


def test_a_sampler_whose_package_is_missing_says_what_to_install():
    pytest.importorskip("optuna")
    try:
        import cmaes  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match="cmaes"):
            sampler_for(SamplerConfig("cmaes"), 0, 0)
    else:
        assert sampler_for(SamplerConfig("cmaes"), 0, 0) is not None


@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_the_median_pruner_spares_the_warm_up(warmup):
    study = optuna.create_study(direction="maximize", pruner=pruner_for(PrunerConfig("median", 2, warmup), 6))
    for value in (0.9, 0.9, 0.1):
        trial = study.ask()
        pruned_at = None
        for epoch in range(1, 7):
            trial.report(value, epoch)
            if trial.should_prune():
                pruned_at = epoch
                break
        if pruned_at:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, value)
    assert pruned_at == warmup + 1


def test_other_pruners_by_name():
    assert isinstance(pruner_for(PrunerConfig("none"), 5), optuna.pruners.NopPruner)
    assert isinstance(pruner_for(PrunerConfig("hyperband"), 5), optuna.pruners.HyperbandPruner)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "seed was 0, now it is 1"),
        ({"config": override(STUDY.config, {"training.epochs": 3})}, "training.epochs was 20, now it is 3"),
        ({"space": SPACE[:3]}, "the search of lora.rank"),
        (
            {"space": (Parameter("optimizer.learning_rate", "float", low=1e-6, high=1e-2, log=True), *SPACE[1:])},
            "low 1e-05",
        ),
    ],
)
def test_changed_rules_are_named(workspace, change, says):
    run(workspace, total=1)
    with pytest.raises(StudyError) as caught:
        open_study(replace(STUDY, **change), workspace, "d" * 64)
    assert says in str(caught.value)
    assert "--name" in str(caught.value)


def test_changed_data_is_refused_and_a_change_of_place_is_not(workspace):
    run(workspace, total=1)
    with pytest.raises(StudyError, match="its data was dddddddddddd, this is eeeeeeeeeeee"):
        open_study(STUDY, workspace, "e" * 64)
    moved = replace(STUDY, config=override(STUDY.config, {"data.root": "elsewhere", "training.device": "cpu"}))
    open_study(moved, workspace, "d" * 64)


def test_equal_rules_have_no_difference():
    assert first_difference(STUDY.rules(), STUDY.rules()) is None


def test_owners_are_told_apart():
    with at_work() as name:
        me = this_worker(name)
        assert not is_dead(me)
        assert is_dead(None)
        assert is_dead(me | {"pid": 2**22 + 1})
        assert is_dead(me | {"started": "tick 1"})
        assert is_dead(me | {"worker": "one that left a trial behind in this process"})
        assert not is_elsewhere(me)
        for there in ({"sight": "another boot or container"}, {"sight": None}):
            assert is_elsewhere(me | there)
            assert not is_dead(me | there | {"pid": 2**22 + 1})
    assert is_dead(me)


def test_a_zombie_is_dead():
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    with at_work() as name:
        owner = this_worker(name) | {"pid": process.pid, "started": started(process.pid)}
        assert not is_dead(owner)
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # over, but not collected
        assert is_dead(owner)
    process.wait()


def test_a_process_that_only_its_own_user_may_see_is_not_dead(monkeypatch):
    def forbidden(pid, sign):
        raise PermissionError

    with at_work() as name:
        hidden = this_worker(name) | {"pid": 2**22 + 1}
        assert is_dead(hidden)
        monkeypatch.setattr("os.kill", forbidden)
        assert not is_dead(hidden)


def test_a_clock_that_is_set_kills_nobody(monkeypatch):
    with at_work() as name:
        me = this_worker(name)
        monkeypatch.setattr(time, "time", lambda: 0.0)
        monkeypatch.setattr("psutil.boot_time", lambda: 0.0)
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: 0.0, raising=False)
        assert not is_dead(me)


def test_storage_comes_from_study_variable_or_workspace(workspace, monkeypatch):
    monkeypatch.delenv("XRAY_OPT_STORAGE", raising=False)
    assert storage_url(workspace) == f"sqlite:///{workspace.study_database}"
    monkeypatch.setenv("XRAY_OPT_STORAGE", "sqlite:///other.db")
    assert storage_url(workspace) == "sqlite:///other.db"
    assert storage_url(workspace, "sqlite:///mine.db") == "sqlite:///mine.db"
    assert storage_url(workspace, "postgresql://u:p@host/db") == "postgresql+psycopg://u:p@host/db"
    assert storage_url(workspace, "postgresql+pg8000://host/db") == "postgresql+pg8000://host/db"


def test_a_storage_has_a_digest_without_secrets(tmp_path):
    one, other = (storage_url(Workspace(tmp_path / name), None) for name in ("one", "other"))
    assert storage_digest(one) == storage_digest(one) != storage_digest(other)
    assert storage_digest(f"sqlite:///{tmp_path}/one/../one/studies/optuna.db") == storage_digest(one)
    server = storage_digest("postgresql://host/db")
    assert storage_digest("postgresql+psycopg://me:secret@HOST:5432/db?password=secret&sslmode=require") == server
    others = (
        "postgresql://host/db2",
        "postgresql://host2/db",
        "postgresql://host:5433/db",
        "postgresql:///db?host=/run",
    )
    assert len({server, *map(storage_digest, others)}) == 5
    with pytest.raises(ConfigError, match="must be a URL"):
        storage_digest("postgresql://host:port/db")


def test_another_storage_than_the_default_can_be_looked_at(workspace):
    elsewhere = f"sqlite:///{workspace.root}/elsewhere.db"
    run(workspace, replace(STUDY, storage=elsewhere), 4)
    assert list_studies(workspace) == []
    assert [study.name for study in list_studies(workspace, elsewhere)] == ["fast"]
    annotate("fast", workspace, "seen", True, elsewhere)
    assert read_study("fast", workspace, elsewhere).notes["seen"] is True
    assert importances("fast", workspace, elsewhere)
    delete_study("fast", workspace, elsewhere)
    assert list_studies(workspace, elsewhere) == []


def test_unusable_storages_are_one_line_without_the_password(workspace):
    assert "secret" not in masked("postgresql+psycopg2://me:secret@host/db")
    assert "secret" not in masked("postgresql://me/you:secret@host/db"), "to SQLAlchemy that is no login"
    assert one_line(ValueError('invalid sslmode: "odd?password=secret"')) == 'invalid sslmode: "odd?password=***"'
    with pytest.raises(ConfigError, match="only sqlite and postgresql"):
        open_storage("mysql://me:secret@host/db")
    with pytest.raises(ConfigError, match="must be a URL"):
        open_storage("no url")
    for url in ("postgresql://me@host/db?password=secret", "postgresql://me:secret@host:secret/db", "secret"):
        assert "secret" not in masked(url)
    with pytest.raises(StudyError, match="cannot be made"):
        open_storage("sqlite:////proc/nowhere/optuna.db")
    (workspace.root / "bad.db").write_text("not a database, but long enough to be read as one " * 50)
    with pytest.raises(StudyError) as caught:
        open_storage(f"sqlite:///{workspace.root}/bad.db")
    assert "\n" not in str(caught.value)


def test_studies_can_be_listed_read_noted_and_deleted(workspace):
    assert list_studies(workspace) == []
    run(workspace)
    (record,) = list_studies(workspace)
    assert (record.name, record.counted, record.best.value) == ("fast", 6, max(t.value for t in record.trials))
    assert record.to_dict()["trials"][0]["started"]
    annotate("fast", workspace, "test_openings", [{"who": "me"}])
    assert read_study("fast", workspace).notes["test_openings"] == [{"who": "me"}]
    delete_study("fast", workspace)
    with pytest.raises(StudyError, match="none yet"):
        read_study("fast", workspace)
    assert list_studies(workspace) == []


def test_importances_name_what_mattered(workspace):
    run(workspace, total=3)
    assert importances("fast", workspace) == {}
    run(workspace, total=25)
    weights = importances("fast", workspace)
    assert max(weights, key=weights.get) == "optimizer.learning_rate"


def test_optuna_says_nothing_by_itself(workspace, capfd):
    run(workspace, total=3)
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("", "")


def test_the_dashboard_knows_the_metric_by_name(workspace):
    run(workspace, total=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.load_study(study_name="fast", storage=storage_url(workspace))
    assert study.metric_names == ["val.f1"]


def test_a_new_database_is_made_with_its_folder(workspace):
    run(workspace, total=1)
    assert os.path.isfile(workspace.study_database)


def trial_record(number, state, reason=None, **notes):
    return TrialRecord(number, state, {}, None, {}, notes, None, None, reason)


def test_a_checkpoint_is_needed_until_a_trial_and_all_that_resume_it_are_over():
    lost = ("FAIL", "worker-lost")
    chain = [trial_record(0, *lost), trial_record(1, *lost, retry_of=0, retries=1), trial_record(2, "COMPLETE")]
    for last, needed in [
        (trial_record(3, "RUNNING", retry_of=1, retries=2), {0, 1, 3}),
        (trial_record(3, *lost, retry_of=1, retries=2), set()),  # given up
        (trial_record(3, "FAIL", "interrupted", retry_of=1, retries=2), {0, 1, 3}),
        (trial_record(3, "PRUNED", retry_of=1, retries=2), set()),
        (trial_record(3, "FAIL", "nan", retry_of=1, retries=2), set()),
    ]:
        assert StudyRecord("s", (*chain, last), {}).resumable() == needed
    assert StudyRecord("s", tuple(chain[:1]), {}).resumable() == {0}


def test_studies_of_one_name_in_two_storages_share_no_checkpoint(tmp_path):
    paths = set()
    for number in range(2):
        study = replace(STUDY, storage=f"sqlite:///{tmp_path}/{number}.db")
        opened = open_study(study, Workspace(tmp_path), "d" * 64)
        opened.tune(lambda trial: paths.add(trial.checkpoint) or Outcome(0.5), 1)
    assert len(paths) == 2
    assert len({path.parent for path in paths}) == 1
