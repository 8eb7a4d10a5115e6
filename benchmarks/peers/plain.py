"""Peer (a): the script that a user would write, with DataLoader, PIL, peft and Optuna; fp32 or autocast."""

from __future__ import annotations

import time
from typing import Any

import optuna
import torch
from common import Clock, Job, Network, autocast, device, f1, loader, one_pass, search, suggested
from measure import Values, serve, spawned
from torch.utils.data import DataLoader


def run(job: Job) -> Values:
    """All trials of a job."""
    clock = Clock()
    best = search(job, lambda trial: objective(job, clock, trial))
    return clock.values(job["trials"], wall_s=time.monotonic() - spawned(), f1=best)


def objective(job: Job, clock: Clock, trial: Any) -> float:
    """Train one network; its best validation F1."""
    with clock.trial():
        rate, decay = suggested(trial)
        network = Network(job).to(device(job))
        optimizer = torch.optim.AdamW(network.trained(), lr=rate, weight_decay=decay)
        train, val = loader(job, "train"), loader(job, "val")
        best = 0.0
        for epoch in range(1, job["epochs"] + 1):
            clock.start()
            one_pass(job, network, optimizer, train)
            clock.stop(len(job["train"]))
            score = validate(job, network, val)
            best = max(best, score)
            trial.report(score, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return best


@torch.no_grad()
def validate(job: Job, network: Network, films: DataLoader) -> float:
    """F1 of the validation films."""
    network.eval()
    truth, found = [], []
    for images, labels in films:
        with autocast(job):
            logits = network(images.to(device(job)))
        found += logits.float().tolist()
        truth += labels.tolist()
    return f1(truth, found)


if __name__ == "__main__":
    serve(run)
