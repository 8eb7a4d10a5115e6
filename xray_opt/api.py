"""The verbs of the command line as functions.

    from xray_opt import api

    study = api.load_study(api.find_study("laptop", api.Workspace.here()))
    report = api.tune(study, api.Workspace.here(), total=20)
    print(report.tally.best, report.version)

Each function raises a subclass of :class:`xray_opt.errors.XrayError` with one line that says what to do. Each one that
is given a workspace takes the variables of that workspace's ``.env`` first; those that are set already win.

=====================  ==========================================================
``prepared``           index and split a folder or CSV; the manifest
``audit``              check a manifest: leaks, bad films, near-duplicates
``shortcut_screen``    what metadata and a thumbnail alone tell of the class
``make_phantoms``      write made-up films
``tune``               bring a study to a number of trials
``train``              one tracked run
``leaderboard``        a study's trials, best first
``confirm``            retrain a study's best settings and judge them by that
``finalize``           open the test split once for the chosen model
``baseline``           compare LoRA with a linear probe, a full fine-tune, trivial models
``reproduce``          train a recorded run anew and compare
``report``             a study's evidence as a page, and a model card
``evaluate``           score a model on a split or on other films
``explain``            a sheet of films with heat maps
``predict``            probabilities of films; ``.patients()`` of it: of those whose films they are
``promote``            make a version the champion
``rollback``           give the champion back to the version that had it before
``champion_moves``     who moved the champion, when and why
``export``             a model as one file: ONNX, torch.export, merged weights
``serve``              a registered version behind HTTP
``export_base``        base weights from a fully trained model
``find_place``         where a study lies: its Optuna storage, its MLflow store
``delete_whole_study`` delete a study everywhere
``collect_garbage``    remove what nobody refers to
``migrate``            copy studies, runs and models to other stores
``diagnose``           check the machine and everything the work needs
=====================  ==========================================================
"""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from xray_opt import base_export, dataset, doctor, places, reporting, scoring, single, upkeep, workers
from xray_opt import baseline as comparing
from xray_opt import confirm as confirming
from xray_opt import export as exporting
from xray_opt import finalize as finalizing
from xray_opt import leaderboard as boards
from xray_opt import migrate as moving
from xray_opt import reproduce as reproducing
from xray_opt import serving as serving_room
from xray_opt.config import Config, StudyConfig, Workspace, find_study, load_environment, load_study, override
from xray_opt.dataset import audit, shortcut_screen
from xray_opt.phantom import make_phantoms
from xray_opt.places import Place
from xray_opt.single import TrainWatcher
from xray_opt.workers import StudyWatcher

P = ParamSpec("P")
R = TypeVar("R")


def _with_environment(verb: Callable[P, R]) -> Callable[P, R]:
    """The verb, reading the ``.env`` of the workspace that it is given before it starts."""
    signature = inspect.signature(verb)

    @functools.wraps(verb)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind_partial(*args, **kwargs).arguments.get("workspace")
        if isinstance(given, Workspace):
            load_environment(given)
        return verb(*args, **kwargs)

    # Its own name, not that of the verb inside it, or no process pool could be given it.
    wrapped.__module__ = __name__
    return wrapped


prepared = _with_environment(dataset.prepared)
tune = _with_environment(workers.tune)
train = _with_environment(single.train)
leaderboard = _with_environment(boards.leaderboard)
confirm = _with_environment(confirming.confirm)
finalize = _with_environment(finalizing.finalize)
baseline = _with_environment(comparing.baseline)
reproduce = _with_environment(reproducing.reproduce)
report = _with_environment(reporting.report)
evaluate = _with_environment(scoring.evaluate)
explain = _with_environment(scoring.explain)
predict = _with_environment(scoring.predict)
promote = _with_environment(scoring.promote)
rollback = _with_environment(scoring.rollback)
champion_moves = _with_environment(scoring.champion_moves)
export = _with_environment(exporting.export)
serve = _with_environment(serving_room.serve)
export_base = _with_environment(base_export.export_base)
find_place = _with_environment(places.find_place)
delete_whole_study = _with_environment(upkeep.delete_whole_study)
collect_garbage = _with_environment(upkeep.collect_garbage)
migrate = _with_environment(moving.migrate)
diagnose = doctor.diagnose  # reads the file itself: a broken one is a finding

__all__ = [
    "Config",
    "Place",
    "StudyConfig",
    "StudyWatcher",
    "TrainWatcher",
    "Workspace",
    "audit",
    "baseline",
    "champion_moves",
    "collect_garbage",
    "confirm",
    "delete_whole_study",
    "diagnose",
    "evaluate",
    "explain",
    "export",
    "export_base",
    "finalize",
    "find_place",
    "find_study",
    "leaderboard",
    "load_study",
    "make_phantoms",
    "migrate",
    "override",
    "predict",
    "prepared",
    "promote",
    "report",
    "reproduce",
    "rollback",
    "serve",
    "shortcut_screen",
    "train",
    "tune",
]
