"""What a study may weigh against validation F1, measured on a trial's saved adapter with the validation films alone.

==============  ========  =====================================================================================
``parameters``  fewer     weights that are trained and kept: adapter and head
``latency``     less      milliseconds a film of the fastest of three fp32 passes over up to 64 validation films
``robustness``  more      the smallest share of decisions that stay as they are under one of ``CHANGES``
==============  ========  =====================================================================================

The search takes the best of many, so a value here is flattered as a trial's F1 is. A latency is this machine's, at the
load of that moment: a continued study need not equal an uninterrupted one. A model that calls every film the same
flips no decision: robustness says something beside F1, never alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from xray_opt.adapter import Bundle, trainable
from xray_opt.cache import Images
from xray_opt.calibration import probability
from xray_opt.errors import DataError
from xray_opt.evaluate import BATCH, Predictor, predict_logits
from xray_opt.robustness import PERTURBATIONS, rescore

#: Changes of native films that robustness looks at; the whole suite is ``evaluate --robustness``.
CHANGES = ("JPEG quality 30", "edges cut by 10 %", "equalised")
#: Timed passes, behind one that is not.
PASSES = 3


def measure(name: str, network: nn.Module, bundle: Bundle, images: Images, device: torch.device) -> float:
    """The objective of this name of a saved network: its weights are ``bundle``'s, ``images`` are of its image size.

    Raises:
        DataError: robustness is asked for and no validation film can be read.
        OutOfMemory: not even one film fits.
    """
    return _MEASURES[name](network, bundle, images, device)


def _parameters(network: nn.Module, bundle: Bundle, images: Images, device: torch.device) -> float:
    return float(trainable(network))


def _latency(network: nn.Module, bundle: Bundle, images: Images, device: torch.device) -> float:
    films = images.val.batch(np.arange(min(BATCH, len(images.val))))
    times = []
    for _ in range(1 + PASSES):
        began = time.perf_counter()
        predict_logits(network, films, bundle.image_size, device)  # its answers are here when it returns
        times.append(time.perf_counter() - began)
    return 1000 * min(times[1:]) / len(films)


def _robustness(network: nn.Module, bundle: Bundle, images: Images, device: torch.device) -> float:
    paths = [Path(images.manifest.root) / path for path in images.val.paths]
    found = rescore(Predictor(network, bundle, device), paths, {name: PERTURBATIONS[name] for name in CHANGES})
    if not len(found.kept):
        raise DataError(f"none of these {len(paths)} validation films can be read: {found.unread[0]}")
    called = probability(found.logits, bundle.temperature) >= bundle.threshold
    return float((called[1:] == called[0]).mean(axis=1).min())


_MEASURES: dict[str, Callable[[nn.Module, Bundle, Images, torch.device], float]] = {
    "parameters": _parameters,
    "latency": _latency,
    "robustness": _robustness,
}
