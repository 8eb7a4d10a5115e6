"""From films to probabilities to scores: always fp32, always the same path, whatever training computed in.

Validation during training, the recorded scores of a saved adapter and ``predict`` on new films all go through
:func:`predict_logits`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from xray_opt.adapter import Bundle, logits
from xray_opt.augment import plain
from xray_opt.cache import Split
from xray_opt.calibration import Calibration, calibrate, probability
from xray_opt.dataset import decode, to_square
from xray_opt.errors import BadFilm, OutOfMemory
from xray_opt.faults import SHORTAGES, out_of_memory
from xray_opt.feed import feed
from xray_opt.metrics import Scores, scores

Floats = NDArray[np.float64]
Films = Split | NDArray[np.uint8]

#: Films a forward pass.
BATCH = 64


@dataclass(frozen=True)
class Assessment:
    """Scores of one set of predictions, and what is fixed on it.

    Attributes:
        scores: at a threshold of 0.5.
        calibration: temperature and thresholds, fitted to these very films.
        at_threshold: scores at the threshold of best F1.
    """

    scores: Scores
    calibration: Calibration
    at_threshold: Scores

    @property
    def threshold(self) -> float:
        """The calibrated probability of best F1 (0.5 where one class is missing)."""
        return self.calibration.threshold


def assess(labels: ArrayLike, logits: ArrayLike) -> Assessment:
    """Assess (N,) raw ``logits`` against (N,) ``labels`` in {0, 1}."""
    calibration = calibrate(labels, logits)
    probabilities = probability(np.asarray(logits, dtype=np.float64), calibration.temperature)
    at_threshold = scores(labels, probabilities, calibration.threshold)
    return Assessment(scores(labels, probabilities), calibration, at_threshold)


def predict_logits(
    network: nn.Module, films: Films, image_size: int, device: torch.device, batch_size: int = BATCH
) -> Floats:
    """(N,) logits in evaluation mode and fp32; the network's own modes are as before when this returns.

    ``network`` is moved to ``device``. The batch is halved when memory runs out.

    Raises:
        OutOfMemory: not even one film fits.
    """
    network.to(device)
    parts: list[Floats] = []
    first = 0
    with exact(network, device):
        while first < len(films):
            part = _try_batch(network, films, np.arange(first, min(first + batch_size, len(films))), image_size, device)
            if part is not None:
                parts.append(part)
                first += len(part)
            elif batch_size == 1:
                raise OutOfMemory(f"no memory for one film of {image_size} px on {device}; lower image.size")
            else:
                batch_size //= 2
    return np.concatenate(parts) if parts else np.empty(0)


@contextmanager
def whole_fp32(device: torch.device) -> Iterator[None]:
    """No TF32 in CUDA's convolutions meanwhile: it would move probabilities by more than 1e-5."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@contextmanager
def exact(network: nn.Module, device: torch.device) -> Iterator[None]:
    """How every recorded logit is computed: evaluation mode, no gradients, fp32 throughout."""
    with evaluating(network), torch.inference_mode(), torch.autocast(device.type, enabled=False), whole_fp32(device):
        yield


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for every module; the mode each module had (frozen BatchNorm differs) comes back at the end."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class Predictor:
    """A network with its bundle, from image files to calibrated probabilities: the path of the validation scores."""

    def __init__(self, network: nn.Module, bundle: Bundle, device: torch.device) -> None:
        self.network = network.to(device).eval()
        self.bundle = bundle
        self.device = device

    def probabilities(self, sources: Sequence[Path | bytes]) -> Floats:
        """(N,) calibrated probabilities of pneumonia for image files or their bytes (JPEG, PNG, DICOM).

        Raises:
            BadFilm: the first one that cannot be read, by its path or position, with the reason.
        """
        return probability(self.logits(sources), self.bundle.temperature)

    def logits(self, sources: Sequence[Path | bytes]) -> Floats:
        """(N,) raw logits of image files or their bytes; raises as :meth:`probabilities`."""
        parts = [self._batch(sources, first) for first in range(0, len(sources), BATCH)]
        return np.concatenate(parts) if parts else np.empty(0)

    def _batch(self, sources: Sequence[Path | bytes], first: int) -> Floats:
        last = min(first + BATCH, len(sources))
        pixels = np.stack([self._square(sources[index], index) for index in range(first, last)])
        return predict_logits(self.network, pixels, self.bundle.image_size, self.device)

    def _square(self, source: Path | bytes, index: int) -> NDArray[np.uint8]:
        name = str(source) if isinstance(source, Path) else f"image {index}"
        try:
            return to_square(decode(source, name), self.bundle.cache_side)
        except BadFilm as error:
            raise BadFilm(f"{name} cannot be read: {error}") from error


def _try_batch(
    network: nn.Module, films: Films, indices: NDArray[np.int64], image_size: int, device: torch.device
) -> Floats | None:
    """Logits of the films at ``indices``, none where memory ran out."""
    try:
        if isinstance(films, Split):
            pixels = feed(films, device).take(indices)
        else:
            pixels = torch.from_numpy(films[indices]).to(device)
        answer = logits(network, plain(pixels, image_size))
    except SHORTAGES as error:
        if not out_of_memory(error):
            raise
        return None
    return answer.float().cpu().double().numpy()
