"""The verbs of the command line as functions.

    from xray_opt import api

    study = api.load_study(api.find_study("laptop", api.Workspace.here()))
    report = api.tune(study, api.Workspace.here(), total=20)
    print(report.tally.best, report.version)

Each function raises a subclass of :class:`xray_opt.errors.XrayError` with one line that says what to do.

=====================  ==========================================================
``prepared``           index and split a folder or CSV; the manifest
``audit``              check a manifest: leaks, bad films, near-duplicates
``shortcut_screen``    what metadata and a thumbnail alone tell of the class
``make_phantoms``      write made-up films
``tune``               bring a study to a number of trials
``train``              one tracked run
``leaderboard``        a study's trials, best first
``evaluate``           score a model on a split or on other films
``predict``            probabilities of films
``promote``            move the champion
``find_place``         where a study lies: its Optuna storage, its MLflow store
``delete_whole_study`` delete a study everywhere
``collect_garbage``    remove what nobody refers to
=====================  ==========================================================
"""

from xray_opt.config import Config, StudyConfig, Workspace, find_study, load_study, override
from xray_opt.dataset import audit, prepared, shortcut_screen
from xray_opt.leaderboard import leaderboard
from xray_opt.phantom import make_phantoms
from xray_opt.places import Place, find_place
from xray_opt.scoring import evaluate, predict, promote
from xray_opt.single import TrainWatcher, train
from xray_opt.upkeep import collect_garbage, delete_whole_study
from xray_opt.workers import StudyWatcher, tune

__all__ = [
    "Config",
    "Place",
    "StudyConfig",
    "StudyWatcher",
    "TrainWatcher",
    "Workspace",
    "audit",
    "collect_garbage",
    "delete_whole_study",
    "evaluate",
    "find_place",
    "find_study",
    "leaderboard",
    "load_study",
    "make_phantoms",
    "override",
    "predict",
    "prepared",
    "promote",
    "shortcut_screen",
    "train",
    "tune",
]
