"""Runs a whole study: data, base weights, tracking, search, ranking, registration.

``tune`` may be called again and again: it does what is missing up to the asked number of trials, and finishes what
a kill left undone (lost trials, their MLflow runs, the registration of the best adapter). What must happen once is done
here; who runs the trials is up to a launcher. Its workers ``join`` what is ready.
"""

from xray_opt.workers.calls import TuneReport, join, ready, tune
from xray_opt.workers.work import Launcher, StudyWatcher, Work, in_process

__all__ = ["Launcher", "StudyWatcher", "TuneReport", "Work", "in_process", "join", "ready", "tune"]
