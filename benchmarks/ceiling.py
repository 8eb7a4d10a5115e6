"""How much of the device's speed the input pipeline leaves (G2), and what building the cache costs an image (G7).

    python benchmarks/ceiling.py --sizes 128/16 --out results/ceiling.json
    python benchmarks/ceiling.py --device cuda --sizes 384/16 384/64 --films 512 --plain-workers 16

The ceiling is the Trainer's own step on one batch that lies on the device: nothing is read, resampled or moved. It
takes turns with real epochs of the same Trainer, on CUDA once more for both with CUDA graphs and, with --plain-workers,
with epochs of the script that a user would write (DataLoader, PIL, peft, autocast; G4). Runs from a bare checkout with
torch, torchvision, peft, safetensors, numpy, pillow, scikit-learn and pyyaml.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import workload
from measure import HERE, Column, Rounds, Thunk, Values, finish, interleave, parser

from xray_opt.adapter import set_mode
from xray_opt.augment import plain
from xray_opt.backbone import random_base, resolve_device
from xray_opt.cache import Images, open_images
from xray_opt.config import Config, Workspace, override
from xray_opt.dataset import Manifest
from xray_opt.trainer import Trainer

CACHE = [Column("core_ms", "cache build, milliseconds an image and core")]


def main() -> None:
    """Measure, print, write."""
    arguments = parser(__doc__)
    workload.add_arguments(arguments, films=128, size=128, batch=16)
    arguments.add_argument("--sizes", nargs="+", metavar="SIDE/BATCH", help="several at once (default: --size/--batch)")
    arguments.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    arguments.add_argument("--plain-workers", type=int, metavar="N", help="the plain script too, N DataLoader workers")
    args = arguments.parse_args()
    if args.toy:
        args.films, args.sizes, args.rounds = 16, ["32/8"], 1
    sizes = [tuple(map(int, text.split("/"))) for text in args.sizes or [f"{args.size}/{args.batch}"]]
    sections: dict[str, Rounds] = {}
    columns: dict[str, list[Column]] = {}
    with tempfile.TemporaryDirectory(prefix="xray-bench-") as folder:
        manifest = workload.make_films(Path(folder) / "films", args.films)
        for size, batch in sizes:
            title = f"training films a second at {size} px, batch {batch}, BatchNorm {args.batch_norm}"
            sections[f"{size}/{batch}"] = one_size(args, manifest, Path(folder), size, batch)
            columns[f"{size}/{batch}"] = [Column("img_s", title)]
        caches = {f"for {side} px": partial(build_cache, manifest, Path(folder), side) for side, _ in sizes}
        sections["cache"] = interleave(caches, args.rounds)
    finish(args, sections, columns | {"cache": CACHE})


def one_size(args: argparse.Namespace, manifest: Manifest, folder: Path, size: int, batch: int) -> Rounds:
    """Real epochs against the same steps on a resident batch."""
    images = whole_batches(manifest, size, folder / "workspace", args.films // batch * batch)
    job = {"size": size, "batch": batch, "batch_norm": args.batch_norm, "device": args.device}
    config = workload.settings(job | {"precision": args.precision, "epochs": args.rounds + 1})
    thunks = pair(config, images, "")
    device = resolve_device(args.device)
    if device.type == "cuda":
        thunks |= pair(override(config, {"training.cuda_graphs": True}), images, ", CUDA graphs")
    if args.plain_workers is not None:
        sized = argparse.Namespace(**vars(args) | {"size": size, "batch": batch})
        job = workload.job_of(folder, sized, 1, manifest, len(images.train))
        thunks["plain: DataLoader, PIL, peft"] = plain_epoch(job | {"workers": args.plain_workers}, device)
    return interleave(thunks, args.rounds)


def pair(config: Config, images: Images, suffix: str) -> dict[str, Thunk]:
    """Steps on one resident batch, and epochs, by one Trainer."""
    trainer = Trainer(config, images, random_base(workload.SEED))
    epochs = trainer.epochs()
    batch, device = config.training.batch_size, trainer.device
    steps = len(images.train) // batch
    resident = plain(torch.from_numpy(images.train.batch(range(batch))).to(device), config.image.size)
    targets = torch.from_numpy(images.train.labels[:batch]).float().to(device)

    def ceiling() -> Values:
        set_mode(trainer.network, True)
        began = now(device)
        for _ in range(steps):
            trainer._stepper.step(resident, targets)
        return {"img_s": steps * batch / (now(device) - began)}

    def real() -> Values:
        return {"img_s": next(epochs).images_per_second}

    return {f"ceiling: one batch{suffix}": ceiling, f"Trainer, real films{suffix}": real}


def plain_epoch(job: dict[str, Any], device: torch.device) -> Thunk:
    """An epoch of the plain script at every call; its workers live on."""
    sys.path.append(str(HERE / "peers"))
    from common import Network, loader, one_pass

    network = Network(job).to(device)
    optimizer = torch.optim.AdamW(network.trained(), lr=1e-3)
    films = loader(job, "train")

    def epoch() -> Values:
        began = now(device)
        one_pass(job, network, optimizer, films)
        return {"img_s": len(job["train"]) / (now(device) - began)}

    return epoch


def whole_batches(manifest: Manifest, size: int, workspace: Path, films: int) -> Images:
    """So many training films, and few to validate: validation is not what is timed."""
    train, val = (workload.some(manifest, split, count) for split, count in (("train", films), ("val", 16)))
    return workload.images_of(manifest, size, workspace, *([path for path, _ in part] for part in (train, val)))


def build_cache(manifest: Manifest, folder: Path, size: int) -> Values:
    """Decode all films into a new cache."""
    with tempfile.TemporaryDirectory(dir=folder) as workspace:
        began = time.perf_counter()
        open_images(manifest, size, Workspace(Path(workspace)))
        milliseconds = 1000 * (time.perf_counter() - began) / len(manifest.films)
    return {"core_ms": milliseconds * (os.cpu_count() or 1), "wall_ms": milliseconds}


def now(device: torch.device) -> float:
    """Seconds, once the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
