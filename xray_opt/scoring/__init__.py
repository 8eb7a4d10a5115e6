"""Uses models: score one on a split or on an outside folder, predict and explain films, promote.

The test split is sealed. Whoever opens it says why, and each opening is written to the study (who, when, why, with
which command) and to MLflow before a film of it is handed out; ``compare`` shows test scores of opened trials only.
"""

from xray_opt.scoring.evaluating import Evaluation, cases_of, changed_films, evaluate, log_robustness, loss_of
from xray_opt.scoring.explaining import Explained, Explanation, explain
from xray_opt.scoring.film_files import film_files
from xray_opt.scoring.levels import FilmCases, Level, film_cases, levels
from xray_opt.scoring.moving import champion_moves, promote, rollback
from xray_opt.scoring.opening import SealedTest, require_own, study_storage
from xray_opt.scoring.outside import Elsewhere, own_manifest, own_settings, strangers
from xray_opt.scoring.predicting import PatientPrediction, Predicted, Prediction, predict
from xray_opt.scoring.shift import Shift
from xray_opt.scoring.subgroups import Subgroup, subgroups
from xray_opt.scoring.trivial import Baseline, baselines, trivial_cases
from xray_opt.scoring.trivial_record import recorded_trivial, trivial_record

__all__ = [
    "Baseline",
    "Elsewhere",
    "Evaluation",
    "Explained",
    "Explanation",
    "FilmCases",
    "Level",
    "PatientPrediction",
    "Predicted",
    "Prediction",
    "SealedTest",
    "Shift",
    "Subgroup",
    "baselines",
    "cases_of",
    "champion_moves",
    "changed_films",
    "evaluate",
    "explain",
    "film_cases",
    "film_files",
    "levels",
    "log_robustness",
    "loss_of",
    "own_manifest",
    "own_settings",
    "predict",
    "promote",
    "recorded_trivial",
    "require_own",
    "rollback",
    "strangers",
    "study_storage",
    "subgroups",
    "trivial_cases",
    "trivial_record",
]
