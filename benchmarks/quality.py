"""Whether the engine learns as well as plain PEFT does: validation scores over several seeds (G9).

    python benchmarks/quality.py --data data/chest_xray --out results/quality.json

Trained the same way are plain PEFT in fp32 with a loop as one would write it, and the product's Trainer in fp32 and in
bf16. Films, split, order, augmented pixels, initial adapter and head, optimizer, dropout's draws and BatchNorm's mode
are the same, so only how the network is computed differs. All validate in fp32. The settings are the first ones of
``studies/laptop.yaml`` at a constant rate, from RANDOM base weights (see :func:`calm_base`). A run is written as soon
as it ends; started again with the same ``--out``, the script does what is missing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import workload
from measure import ROOT, machine, write_whole
from scipy.stats import t as student
from torch import nn
from torchvision.ops import sigmoid_focal_loss
from twin import base_of, plain_peft

from xray_opt.adapter import logits, set_mode
from xray_opt.augment import Augment
from xray_opt.backbone import Base, build_network, random_base, resolve_device
from xray_opt.cache import Images
from xray_opt.calibration import probability
from xray_opt.config import Config, flatten, load_study, override
from xray_opt.evaluate import predict_logits
from xray_opt.metrics import scores
from xray_opt.trainer import Trainer
from xray_opt.trainer.statistics import reestimate
from xray_opt.trainer.trainer import make_optimizer, seeds

Values = dict[str, float]
Run = dict[str, Any]
#: Trains one config: every epoch's values.
Course = Callable[[Config, Images, Base], list[Values]]

NORMS = ("frozen", "train")
METRICS = {
    "auc": "validation AUC of the epoch that is kept (highest F1)",
    "f1": "validation F1 of that epoch",
    "val_loss": "validation loss of that epoch",
    "last_auc": "validation AUC of the last epoch",
}
#: Values of an epoch that nobody chose: its place, its value.
ENDS = {"last_auc": (-1, "auc"), "first_loss": (0, "train_loss")}


def main() -> None:
    """Train what is missing, print, write."""
    args = options()
    with tempfile.TemporaryDirectory(prefix="xray-bench-") as folder:
        manifest = workload.films_of(args.data, Path(folder), args.films)
        images = chosen(args, manifest, Path(folder))
        config = settings(args)
        base = calm_base(images, args.size)
        record = opened(args.out, facts(args, config, images, base))
        for seed, norm, name in itertools.product(range(args.seeds), NORMS, CONTENDERS):
            key = {"seed": seed, "batch_norm": norm, "contender": name}
            if not any(key.items() <= run.items() for run in record["runs"]):
                record["runs"].append(key | trained(override(config, own_settings(key)), name, images, base))
                write_whole(args.out, record)
                print(f"{len(record['runs'])} runs, the last one {record['runs'][-1]}", file=sys.stderr, flush=True)
    write_whole(args.out, record | {"summary": report(record["runs"])})


def options() -> argparse.Namespace:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, metavar="FOLDER", help="real films; without it phantoms, which prove little")
    made.add_argument("--out", type=Path, default=Path("quality.json"), metavar="FILE.json", help="every run; kept")
    made.add_argument("--seeds", type=int, default=5, help="runs of each contender and mode, 2 or more (default: 5)")
    made.add_argument("--films", type=int, default=800, help="training films, evenly over the split (default: 800)")
    made.add_argument("--size", type=int, default=64, help="side in pixels (default: 64)")
    made.add_argument("--batch", type=int, default=16, help="films a step (default: 16)")
    made.add_argument("--epochs", type=int, default=4, help="(default: 4)")
    made.add_argument("--device", default="cpu", help="cpu, cuda or auto (default: cpu)")
    made.add_argument("--toy", action="store_true", help="as small as it gets: shows that the script runs, no more")
    args = made.parse_args()
    if args.toy:
        args.films, args.size, args.batch, args.epochs, args.seeds = 16, 32, 8, 2, 2
    if args.seeds < 2:
        made.error("--seeds must be 2 or more: there is no spread of one")
    return args


def chosen(args: argparse.Namespace, manifest: Any, folder: Path) -> Images:
    """Whole batches of training films, and all films of the validation split."""
    have = min(args.films, len(manifest.of("train"))) // args.batch * args.batch
    paths = ([path for path, _ in workload.some(manifest, *part)] for part in (("train", have), ("val", 10**6)))
    return workload.images_of(manifest, args.size, folder / "workspace", *paths)


def calm_base(images: Images, size: int) -> Base:
    """Random weights that a network with frozen norms can be trained on, as it can on weights that learned something.

    Norms hold the statistics of up to 256 training films, and what a block adds to its input is a fifth of it: with
    full blocks rounding alone grows through 40 of them until two equal trainings have nothing in common.
    """
    network = build_network(random_base(workload.SEED).state)
    for block in network.modules():
        if getattr(block, "use_res_connect", False):
            nn.init.constant_(block.block[-1][1].weight, 0.2)
    reestimate(network, images.train, size, torch.device("cpu"), workload.SEED)
    return base_of(network, random_base(workload.SEED).state, "random, calm")


def settings(args: argparse.Namespace) -> Config:
    """The first setting of the laptop study, every epoch of it, at a constant rate."""
    study = load_study(ROOT / "studies" / "laptop.yaml")
    changed = {
        "image.size": args.size,
        "training.batch_size": args.batch,
        "training.epochs": args.epochs,
        "training.early_stopping_patience": args.epochs,
        "scheduler.patience": args.epochs,
        "training.device": args.device,
    }
    return override(study.settings(study.enqueue[0]), changed)


def own_settings(key: Run) -> dict[str, Any]:
    """What tells one run from the others."""
    precision = "bf16" if key["contender"].endswith("bf16") else "fp32"
    return {"training.seed": key["seed"], "model.batch_norm": key["batch_norm"], "training.precision": precision}


def facts(args: argparse.Namespace, config: Config, images: Images, base: Base) -> Run:
    """What all runs of a file share."""
    learned = ("image.", "model.", "lora.", "loss.", "optimizer.", "augment.", "training.")
    known = {name: value for name, value in flatten(config).items() if name.startswith(learned)}
    films = {split.name: [len(split), int(split.labels.sum())] for split in (images.train, images.val)}
    kind = "phantoms" if args.data is None else "films"
    return {"data": kind, "manifest": images.manifest.sha256, "films, positive": films, "base": base.sha256} | known


def opened(file: Path, shared: Run) -> Run:
    """The record in ``file``, or a new one; one of other settings is refused."""
    if not file.exists():
        return {"script": "quality.py", "machine": machine(), "settings": shared, "runs": []}
    record: Run = json.loads(file.read_text(encoding="utf-8"))
    record.pop("summary", None)
    if other := [name for name in shared if record["settings"].get(name) != shared[name]]:
        raise SystemExit(f"{file} holds runs with another {other[0]}; remove it or name another --out")
    return record


def trained(config: Config, name: str, images: Images, base: Base) -> Run:
    """One run: its seconds and its epochs."""
    began = time.perf_counter()
    epochs = CONTENDERS[name](config, images, base)
    return {"seconds": round(time.perf_counter() - began, 1), "epochs": epochs}


def by_engine(config: Config, images: Images, base: Base) -> list[Values]:
    """The product's Trainer."""
    return [
        {"train_loss": epoch.train_loss, "val_loss": epoch.val_loss, "f1": epoch.val.f1, "auc": epoch.val.auc}
        for epoch in Trainer(config, images, base).epochs()
    ]


def by_plain_loop(config: Config, images: Images, base: Base) -> list[Values]:
    """PEFT in a loop of one's own, fed with the Trainer's films, pixels and random numbers."""
    device = resolve_device(config.training.device)
    network = plain_peft(base, config).to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(network, config.optimizer)
    epochs = []
    for number in range(1, config.training.epochs + 1):
        loss = one_pass(config, network, optimizer, images, number)
        if config.model.batch_norm == "train":  # as our validation does: running averages lag behind a random base
            reestimate(network, images.train, config.image.size, device, seeds(config.training.seed, number)[0])
        epochs.append({"train_loss": loss} | validated(config, network, images, device))
    return epochs


def one_pass(config: Config, network: Any, optimizer: Any, images: Images, number: int) -> float:
    """Train on every film once; the mean loss."""
    order, pixels, draws = seeds(config.training.seed, number)
    augment, generator = Augment(config.augment, config.image.size), torch.Generator().manual_seed(pixels)
    places = np.random.default_rng(order).permutation(len(images.train))
    device = next(network.parameters()).device
    losses = []
    set_mode(network, True)
    torch.manual_seed(draws)
    for batch in np.split(places, range(config.training.batch_size, len(places), config.training.batch_size)):
        films = torch.from_numpy(images.train.batch(batch)).to(device)
        answer = logits(network, augment(films, generator))
        loss = focal(config, answer, images.train.labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return statistics.fmean(losses)


def focal(config: Config, answer: torch.Tensor, labels: Any) -> torch.Tensor:
    """Torchvision's focal loss, not ours."""
    targets = torch.from_numpy(labels).to(answer)
    return sigmoid_focal_loss(answer, targets, config.loss.alpha, config.loss.gamma, reduction="mean")


def validated(config: Config, network: Any, images: Images, device: torch.device) -> Values:
    """Loss and scores of the validation films."""
    answer = predict_logits(network, images.val, config.image.size, device)
    found = scores(images.val.labels, probability(answer))
    loss = focal(config, torch.from_numpy(answer), images.val.labels).item()
    return {"val_loss": loss, "f1": found.f1, "auc": found.auc}


#: The first one is what the others are held against.
CONTENDERS: dict[str, Course] = {
    "plain PEFT fp32": by_plain_loop,
    "engine fp32": by_engine,
    "engine bf16": by_engine,
}


def report(runs: list[Run]) -> list[Run]:
    """Print tables, every seed's AUC and the verdicts; the tables' rows."""
    plain, *others = CONTENDERS
    rows = summary(runs)
    for norm in NORMS:
        for metric in METRICS:
            print("\n".join(table([row for row in rows if (row["batch_norm"], row["metric"]) == (norm, metric)])))
        print(f"\nby seed, AUC of the kept epoch: {', '.join(CONTENDERS)}")
        for aucs in zip(*(values_of(runs, norm, name, "auc") for name in CONTENDERS), strict=True):
            print("  " + "".join(f"{auc:>10.4f}" for auc in aucs))
        for name in others:
            first, own = (values_of(runs, norm, one, "first_loss") for one in (plain, name))
            apart = max(abs(pair) / value for pair, value in zip(differences(first, own), first, strict=True))
            print(f"first epoch's training loss of {name}: within {apart:.1e} of plain PEFT's")
    print()
    for norm, name in itertools.product(NORMS, others):
        print(verdict(norm, name, *(values_of(runs, norm, one, "auc") for one in (plain, name))))
    return rows


def values_of(runs: list[Run], norm: str, name: str, metric: str) -> list[float]:
    """One value a seed, in the order of seeds."""
    own = [run for run in runs if (run["batch_norm"], run["contender"]) == (norm, name)]
    own = sorted(own, key=lambda run: run["seed"])
    if metric in ENDS:
        place, value = ENDS[metric]
        return [run["epochs"][place][value] for run in own]
    return [kept(run["epochs"])[metric] for run in own]


def kept(epochs: list[Values]) -> Values:
    """The epoch that the product keeps: highest F1, among equals the lowest loss."""
    return max(epochs, key=lambda epoch: (epoch["f1"], -epoch["val_loss"]))


def summary(runs: list[Run]) -> list[Run]:
    """Mean, SD and paired difference of every contender, mode and metric."""
    rows = []
    for norm, metric, name in itertools.product(NORMS, METRICS, CONTENDERS):
        plain, own = (values_of(runs, norm, one, metric) for one in (next(iter(CONTENDERS)), name))
        row = {"batch_norm": norm, "metric": metric, "contender": name, "seeds": len(own)}
        row |= {"mean": statistics.fmean(own), "sd": statistics.stdev(own)}
        pairs = differences(plain, own)
        rows.append(row | {"difference": statistics.fmean(pairs), "interval": interval(pairs)})
    return rows


def differences(plain: list[float], others: list[float]) -> list[float]:
    """Seed by seed, the second minus the first."""
    return [other - one for one, other in zip(plain, others, strict=True)]


def interval(pairs: list[float]) -> tuple[float, float]:
    """95 % interval of the mean of paired differences, by Student's t."""
    middle, error = statistics.fmean(pairs), statistics.stdev(pairs) / len(pairs) ** 0.5
    reach = float(student.ppf(0.975, len(pairs) - 1)) * error
    return middle - reach, middle + reach


def table(rows: list[Run]) -> list[str]:
    """Lines of at most 80 columns: mean, SD, and the paired difference to the first contender with its interval."""
    title = f"BatchNorm {rows[0]['batch_norm']}, {rows[0]['seeds']} seeds: {METRICS[rows[0]['metric']]}"
    lines = ["", title, f"{'':<17}{'mean':>9}{'SD':>8}   paired difference to plain PEFT [95 %]"]
    for place, row in enumerate(rows):
        low, high = row["interval"]
        apart = f"{row['difference']:>+11.2g} [{low:+.2g}, {high:+.2g}]" if place else ""
        lines.append(f"{row['contender']:<17}{row['mean']:>9.4f}{row['sd']:>8.4f}{apart}")
    return lines


def verdict(norm: str, name: str, plain: list[float], own: list[float]) -> str:
    """Whether the mean AUC is no lower than plain PEFT's less the spread of its seeds."""
    mean, wanted, spread = statistics.fmean(own), statistics.fmean(plain), statistics.stdev(plain)
    held = "quality is held" if mean >= wanted - spread else "QUALITY IS NOT HELD"
    return f"{held}: {name}, norms {norm}: AUC {mean:.4f} against {wanted:.4f} − {spread:.4f}"


if __name__ == "__main__":
    main()
