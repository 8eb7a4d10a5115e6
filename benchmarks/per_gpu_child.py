"""Child of ``per_gpu.py``: whole trials on films of the device, from the moment that all processes are ready."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import workload
from measure import Values, serve

from xray_opt.backbone import read_base, resolve_device
from xray_opt.cache import Images, Split, open_images
from xray_opt.config import Config, DataConfig, Workspace, override
from xray_opt.dataset import prepare
from xray_opt.feed import feed
from xray_opt.trainer import Trainer


def run(job: dict[str, Any]) -> Values:
    """When the trials began and ended on this machine's clock, and what they trained."""
    config = override(workload.settings(job), {"training.cuda_graphs": job["graphs"]})
    images, base, device = films_of(job), read_base(Path(job["base"])), resolve_device(job["device"])
    for split in (images.train, images.val):
        feed(split, device)
    meet(Path(job["meeting"]), job["number"])
    began = time.monotonic()
    for trial in range(job["trials"]):
        train(override(config, {"training.seed": trial}), images, base)
    ended = time.monotonic()
    values = {"began": began, "ended": ended, "trials": float(job["trials"])}
    values["films"] = float(job["trials"] * job["epochs"] * len(images.train))
    if device.type == "cuda":
        values["mib"] = torch.cuda.max_memory_reserved(device) / 2**20
    return values


def train(config: Config, images: Images, base: Any) -> None:
    """One trial, to the end of its last validation."""
    for _ in Trainer(config, images, base).epochs():
        pass


def films_of(job: dict[str, Any]) -> Images:
    """As many films of each split as the job says; few are decoded, and repeat."""
    manifest = prepare(DataConfig(root=job["root"], **workload.SHARES))
    images = open_images(manifest, job["size"], Workspace(Path(job["workspace"])))
    return replace(images, train=grown(images.train, job["films"]), val=grown(images.val, job["val_films"]))


def grown(split: Split, films: int) -> Split:
    """``films`` films of ``split``, over and over."""
    return workload.at(split, np.resize(np.arange(len(split)), films).tolist())


def meet(meeting: Path, number: int) -> None:
    """Say that this process is ready, and wait until all are."""
    (meeting / f"ready-{number}").touch()
    while not (meeting / "go").exists():
        time.sleep(0.005)


if __name__ == "__main__":
    serve(run)
