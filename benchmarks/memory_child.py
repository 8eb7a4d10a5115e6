"""Child of ``memory.py``: peak GPU memory of one variant for each micro-batch, or what it comes to within a budget."""

from __future__ import annotations

from typing import Any

import torch
from measure import Values, serve
from step import VARIANTS, WAYS, plain_peft

from xray_opt.adapter import attach, set_mode
from xray_opt.backbone import random_base
from xray_opt.config import Config, override
from xray_opt.trainer.choice import choose
from xray_opt.trainer.graphed import release
from xray_opt.trainer.step import Stepper
from xray_opt.trainer.trainer import make_optimizer


def run(job: dict[str, Any]) -> Values:
    """Values by micro-batch, or the micro-batch that was chosen."""
    device = torch.device(job["device"])
    if "budget" in job:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, job["budget"] / total), device)
        return {"micro_batch": float(steps(job, device, 64).micro_batch)}
    values: Values = {}
    for films in job["batches"]:
        torch.cuda.reset_peak_memory_stats(device)
        if steps(job, device, films).micro_batch < films:
            break
        values[f"b{films}"] = torch.cuda.max_memory_allocated(device) / 2**20
        values[f"reserved{films}"] = torch.cuda.max_memory_reserved(device) / 2**20
        release()
        torch.cuda.empty_cache()
    return values


def steps(job: dict[str, Any], device: torch.device, films: int) -> Stepper:
    """Two steps of ``films`` at once, or of what fits of them."""
    ours, norm = VARIANTS[job["variant"]]
    settings = {"lora.rank": job["rank"], "image.size": job["size"], "model.batch_norm": norm}
    config = override(Config(), settings | WAYS[job["way"]])
    network = (attach if ours else plain_peft)(random_base(0), config)
    network = network.to(device, memory_format=torch.channels_last)
    set_mode(network, True)
    gradients = choose(network, config, torch.bfloat16, device, "random weights", print)
    stepper = Stepper(gradients, make_optimizer(network, config.optimizer), films, norm == "train" and ours, print)
    size = job["size"]
    images = torch.randn(films, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        stepper.step(images, (torch.arange(films, device=device) % 2).float())
    return stepper


if __name__ == "__main__":
    serve(run)
