"""A listing that is read once draws what many listings draw, and shows what this process writes meanwhile."""

import copy

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from xray_opt.tuning.listing import Listing

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

SPACE = {
    "optimizer.learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
    "lora.rank": CategoricalDistribution([4, 8, 16]),
    "loss.gamma": FloatDistribution(0, 3),
}


class Counted(optuna.storages.InMemoryStorage):
    """Optuna's own storage, whose listings are counted."""

    lists = 0

    def get_all_trials(self, *args, **kwargs):
        self.lists += 1
        return super().get_all_trials(*args, **kwargs)


def draw(trial, names):
    """Values for some of the space; every other trial has no gamma."""
    values = {"optimizer.learning_rate": trial.suggest_float("optimizer.learning_rate", 1e-4, 1e-2, log=True)}
    values["lora.rank"] = trial.suggest_categorical("lora.rank", [4, 8, 16])
    if "loss.gamma" in names:
        values["loss.gamma"] = trial.suggest_float("loss.gamma", 0, 3)
    return values


@pytest.fixture
def study():
    """Thirty trials that are over, eight pruned ones, four that other workers have drawn, one of them whole."""
    made = optuna.create_study(storage=Counted(), direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    for number in range(38):
        trial = made.ask()
        values = draw(trial, SPACE if number % 2 else ())
        trial.report(values["lora.rank"] / 20, 1)
        state = TrialState.PRUNED if number % 5 == 4 else TrialState.COMPLETE
        made.tell(trial, None if state == TrialState.PRUNED else 1 - values["optimizer.learning_rate"], state=state)
    for number in range(4):
        made.sampler = tpe(100 + number)
        running = made.ask()
        if number == 0:
            draw(running, SPACE)
    return made


def tpe(seed):
    return optuna.samplers.TPESampler(n_startup_trials=5, multivariate=True, group=True, seed=seed, constant_liar=True)


@pytest.mark.parametrize("names", [tuple(SPACE), ()])
def test_one_listing_draws_what_many_draw(study, names):
    other = copy.deepcopy(study)
    listed, listing = Listing.before(other)
    for seed in range(6):
        study._storage.lists = other._storage.lists = 0
        study.sampler, listed.sampler = tpe(seed), tpe(seed)
        plain = draw(study.ask(), names)
        with listing.once():
            assert len(listed.get_trials(deepcopy=False)) == len(study.trials) - 1
            assert draw(listed.ask(), names) == plain
        assert other._storage.lists == 1 < study._storage.lists


def test_what_this_process_writes_is_seen_and_the_next_block_reads_anew(study):
    storage = study._storage
    listed, listing = Listing.before(study)
    queued = {"lora.rank": 8}
    with listing.once():
        before = listed.get_trials(deepcopy=False)
        listed.enqueue_trial(queued)
        running = [trial for trial in before if trial.state == TrialState.RUNNING]
        listed.tell(running[0].number, state=TrialState.FAIL)
        seen = listed.get_trials(deepcopy=False)
        assert seen == storage.get_all_trials(study._study_id)
        assert [trial.state for trial in seen].count(TrialState.WAITING) == 1
        assert [trial.state for trial in seen].count(TrialState.RUNNING) == len(running) - 1
        assert listed.ask().suggest_categorical("lora.rank", [4, 8, 16]) == 8
        assert not listed.get_trials(states=(TrialState.WAITING,))
        study.add_trial(create_trial(value=0.5, params={}, distributions={}))
        assert len(listed.trials) == len(storage.get_all_trials(study._study_id)) - 1
    assert listed.get_trials(deepcopy=False) == storage.get_all_trials(study._study_id)


def test_a_copy_of_what_is_listed_may_be_changed(study):
    listed, listing = Listing.before(study)
    with listing.once():
        listed.get_trials(deepcopy=True)[0].params["lora.rank"] = 99
        assert 99 not in [trial.params["lora.rank"] for trial in listed.get_trials(deepcopy=False) if trial.params]
