"""Films, and in which split each one stands: index, patient-level split, manifest, audit, decoder; no torch.

The way of a set: ``index`` lists it, ``preparing`` opens every film once and groups, ``split`` splits, ``manifest``
keeps the result, ``audit`` checks it again from the files.
"""

from xray_opt.dataset.audit import Audit, audit
from xray_opt.dataset.audit_record import keep_audit, kept_audit
from xray_opt.dataset.drift import FALSE_ALARMS, Drift, drift
from xray_opt.dataset.films import begins_like_a_film, decode, to_square
from xray_opt.dataset.index import files_below
from xray_opt.dataset.manifest import Manifest, kept_manifests, write_atomic
from xray_opt.dataset.names import LABELS
from xray_opt.dataset.preparing import (
    kept_manifest,
    patient_of,
    prepare,
    prepared,
    redrawn,
    remember,
    resplit,
    same_films,
    settled,
    unsplit,
)
from xray_opt.dataset.pseudonyms import Pseudonyms
from xray_opt.dataset.records import Film, LeftOut
from xray_opt.dataset.shortcuts import BASELINES, Shortcut, in_threads, shortcut_screen, trivial_models
from xray_opt.dataset.table import read_patients

__all__ = [
    "BASELINES",
    "FALSE_ALARMS",
    "LABELS",
    "Audit",
    "Drift",
    "Film",
    "LeftOut",
    "Manifest",
    "Pseudonyms",
    "Shortcut",
    "audit",
    "begins_like_a_film",
    "decode",
    "drift",
    "files_below",
    "in_threads",
    "keep_audit",
    "kept_audit",
    "kept_manifest",
    "kept_manifests",
    "patient_of",
    "prepare",
    "prepared",
    "read_patients",
    "redrawn",
    "remember",
    "resplit",
    "same_films",
    "settled",
    "shortcut_screen",
    "to_square",
    "trivial_models",
    "unsplit",
    "write_atomic",
]
