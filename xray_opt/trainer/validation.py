"""Logits of the validation films after each epoch; what frozen stages give for them is computed once.

Where BatchNorm is frozen and the first stages are not trained (``lora.stages=late``, ``strategy=linear``), their output
for a validation film is the same in every epoch and every trial on the same base. It is kept where it fits, in the
precision and the batches of :func:`~xray_opt.evaluate.predict_logits`, whose answers are equal bit for bit.
"""

from __future__ import annotations

import weakref

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from xray_opt.adapter import frozen_prefix, run_prefix, run_rest
from xray_opt.augment import plain
from xray_opt.cache import Split
from xray_opt.evaluate import BATCH, Floats, exact, predict_logits
from xray_opt.faults import SHORTAGES, out_of_memory
from xray_opt.feed import feed

#: Share of the free memory that kept outputs may take.
SHARE = 0.1
#: Parts of the network that are worth keeping the output of: less than the stem and one stage saves little.
LEAST = 2

#: One set of kept outputs a split: what they were made from, and a tensor a batch.
_KEPT: dict[int, tuple[object, list[Tensor]]] = {}


def validation_logits(
    network: nn.Module, films: Split, image_size: int, device: torch.device, base_sha256: str
) -> Floats:
    """(N,) logits as :func:`~xray_opt.evaluate.predict_logits` gives them; ``base_sha256`` names the frozen weights.

    Raises:
        OutOfMemory: not even one film fits.
    """
    length = frozen_prefix(network)
    if length < LEAST:
        return predict_logits(network, films, image_size, device)
    network.to(device)
    try:
        with exact(network, device):
            inner = _outputs(network, length, films, image_size, device, base_sha256)
            if inner is not None:
                parts = [run_rest(network, length, batch).float().cpu().double().numpy() for batch in inner]
                return np.concatenate(parts)
    except SHORTAGES as error:
        if not out_of_memory(error):
            raise
        inner = None  # what was kept must go before the films are tried anew
        _KEPT.pop(id(films), None)
    return predict_logits(network, films, image_size, device)


def forget() -> None:
    """Let go of all that is kept, where memory is needed for training; it is computed again when it is asked for."""
    _KEPT.clear()


def _outputs(
    network: nn.Module, length: int, films: Split, image_size: int, device: torch.device, base_sha256: str
) -> list[Tensor] | None:
    """Outputs of the frozen parts a batch, none where they would take too much memory."""
    made_from = (length, image_size, str(device), base_sha256)
    known = _KEPT.get(id(films))
    if known is not None and known[0] == made_from:
        return known[1]
    outputs: list[Tensor] = []
    for first in range(0, len(films), BATCH):
        indices = np.arange(first, min(first + BATCH, len(films)))
        outputs.append(run_prefix(network, length, plain(feed(films, device).take(indices), image_size)))
        if first == 0 and outputs[0].nbytes / len(indices) * len(films) > SHARE * _free(device):
            return None
    if known is None:
        weakref.finalize(films, _KEPT.pop, id(films), None)
    _KEPT[id(films)] = made_from, outputs
    return outputs


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
