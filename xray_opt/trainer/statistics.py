"""BatchNorm statistics as validation should see them: of the weights as they are now, over many films.

The running averages of training lag behind the weights and are noisy with small batches; on a base that is random they
make validation scores jump. So they are taken anew before each validation (PreciseBN: Wu and Johnson 2021,
*Rethinking "Batch" in BatchNorm*).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from xray_opt.adapter import logits
from xray_opt.augment import plain
from xray_opt.cache import Split
from xray_opt.evaluate import evaluating
from xray_opt.feed import feed

#: Films the statistics are averaged over, and films a forward pass where memory is no concern.
FILMS, BATCH = 256, 32


@torch.no_grad()
def reestimate(
    network: nn.Module, films: Split, image_size: int, device: torch.device, seed: int, batch_size: int = BATCH
) -> None:
    """Replace every running mean and variance by the average over batches of up to 256 training films, as they are.

    Nothing else is in training mode meanwhile; modes and momenta are as before when this returns. Deterministic.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    chosen = np.random.default_rng(seed).permutation(len(films))[:FILMS]
    momenta = [module.momentum for module in norms]
    with evaluating(network), torch.autocast(device.type, enabled=False):
        for module in norms:
            module.reset_running_stats()
            module.momentum = None  # a plain average over the batches
            module.training = True
        for batch in np.array_split(chosen, -(-len(chosen) // batch_size)):
            if len(batch) < 2:
                continue  # one film has no variance
            logits(network, plain(feed(films, device).take(batch), image_size))
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum
            module.training = False
