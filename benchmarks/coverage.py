"""How often do intervals hold what they promise? Coverage of five bootstrap methods, and false alarms of paired tests.

    python benchmarks/coverage.py --out docs/performance/coverage.json      about fifteen minutes on a core

Patients with one film or more, binormal scores with a patient's own share in them, probabilities that are too certain;
the true scores come from 400,000 patients. Prints the tables of docs/statistics.md: covered of 100 nominal 95 %
intervals, and how many lay above and below the truth. Rare flips, which need no scores, are in coverage_shares.py.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from coverage_shares import table
from numpy.typing import NDArray
from scipy.stats import norm

from xray_opt.intervals import Interval, Patients, ends, gains, resampled
from xray_opt.metrics import Cases, focal_losses, weighted_scores

Floats = NDArray[np.float64]
#: Method → low and high.
Bounds = dict[str, tuple[float, float]]
#: Share of patients with pneumonia; share of a score's variance that a patient's films have in common; how much too
#: large the logits are.
SHARE, COMMON, TOO_CERTAIN = 0.7, 0.5, 1.5
METHODS = ("percentile", "basic", "normal", "ours", "BCa")
Z = norm.ppf(0.975)


def draw(chance: np.random.Generator, patients: int, auc: float, models: int = 1) -> tuple[list[Cases], NDArray[Any]]:
    """The same films scored by models of equal skill, and the patient of each film."""
    truth = (chance.random(patients) < SHARE).astype(np.int64)
    films = 1 + chance.poisson(0.7, patients)
    whose = np.repeat(np.arange(patients), films)
    apart = norm.ppf(auc) * np.sqrt(2)
    labels = truth[whose]
    easy = chance.normal(0, np.sqrt(COMMON), patients)[whose]
    cases = []
    for _ in range(models):
        score = apart * (labels - 0.5) + easy + chance.normal(0, np.sqrt(1 - COMMON), len(whose))
        logits = TOO_CERTAIN * (apart * score + np.log(SHARE / (1 - SHARE)))
        cases.append(Cases(labels, 1 / (1 + np.exp(-logits)), focal_losses(labels, logits, 0.25, 2.0)))
    return cases, whose


def bounds(value: float, drawn: Floats, own: Interval, left_out: Floats | None) -> Bounds:
    """Method → interval of one score, from (B,) resamples and, for BCa, (P,) values with one patient left out."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    spread = drawn.std(ddof=1)
    found = {
        "percentile": (low, high),
        "basic": (2 * value - high, 2 * value - low),
        "normal": (value - Z * spread, value + Z * spread),
        "ours": (np.nan if own.low is None else own.low, np.nan if own.high is None else own.high),
    }
    if left_out is not None:
        found["BCa"] = accelerated(value, drawn, left_out)
    return found


def accelerated(value: float, drawn: Floats, left_out: Floats) -> tuple[float, float]:
    """Efron 1987; acceleration from leaving patients out."""
    below = np.clip((drawn < value).mean() + (drawn == value).mean() / 2, 1e-4, 1 - 1e-4)
    bias, jack = norm.ppf(below), left_out.mean() - left_out
    speed = np.sum(jack**3) / (6 * np.sum(jack**2) ** 1.5 + 1e-300)
    low, high = np.quantile(drawn, [norm.cdf(bias + (bias + z) / (1 - speed * (bias + z))) for z in (-Z, Z)])
    return low, high


def coverage(
    auc: float, patients: int, simulations: int, resamples: int, seed: int, bca: bool = False
) -> dict[str, dict[str, Any]]:
    """Score → its truth, and method → percent covered, above and below the truth."""
    chance = np.random.default_rng(seed)
    (population,), _ = draw(chance, 400_000, auc)
    truth = plain(population)
    missed: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for number in range(simulations):
        (cases,), whose = draw(chance, patients, auc)
        who = Patients([f"{one:06d}" for one in whose], seed=number)
        drawn = resampled(lambda weights, cases=cases: weighted_scores(cases, weights, 0.5), who, resamples)
        left_out = weighted_scores(cases, (1 - np.eye(who.count))[:, who.codes], 0.5) if bca else {}
        for name, own in ends(cases, who, 0.5, drawn).items():
            for method, (low, high) in bounds(own.value, drawn[name], own, left_out.get(name)).items():
                missed[name, method][0] += bool(truth[name] < low)
                missed[name, method][1] += bool(truth[name] > high)
                missed[name, method][2] += bool(np.isnan(low))
    return {
        name: {"truth": truth[name]}
        | {method: shares(missed[name, method], simulations) for method in METHODS if (name, method) in missed}
        for name in truth
    }


def shares(missed: list[int], simulations: int) -> dict[str, float]:
    """Percent covered, above and below of the intervals that there are, and percent of simulations without one."""
    given = simulations - missed[2]
    above, below = (100 * count / given if given else np.nan for count in missed[:2])
    none = 100 * missed[2] / simulations
    return {"covered": 100 - above - below, "above": above, "below": below, "no interval": none}


def plain(cases: Cases) -> dict[str, float]:
    """Score → its value for these films."""
    found = weighted_scores(cases, np.ones((1, len(cases.labels))), 0.5)
    return {name: float(values[0]) for name, values in found.items()}


def false_alarms(auc: float, patients: int, simulations: int, resamples: int, seed: int) -> dict[str, float]:
    """Score → percent of paired tests of two equally good models that say p < .05."""
    chance = np.random.default_rng(seed)
    alarms: dict[str, int] = defaultdict(int)
    for number in range(simulations):
        (ours, theirs), whose = draw(chance, patients, auc, models=2)
        who = Patients([f"{one:06d}" for one in whose], seed=number)
        for name, found in gains(ours, theirs, who, (0.5, 0.5), resamples).items():
            alarms[name] += found.p is not None and found.p < 0.05
    return {name: 100 * count / simulations for name, count in alarms.items()}


def main() -> None:
    """Simulate, print the tables, and write them as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=600)
    parser.add_argument("--auc", type=float, nargs="+", default=[0.90, 0.98, 0.998])
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=1000, help="simulations of paired tests")
    parser.add_argument("--flips", type=int, default=4000, help="simulations of rare flips, 0 for none")
    parser.add_argument("--bca", action="store_true", help="BCa too, which takes as long again")
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    result: dict[str, Any] = {"settings": {name: value for name, value in vars(args).items() if name != "out"}}
    if args.flips:
        result["flips"] = table(args.flips, args.resamples, args.seed)
    for auc in args.auc:
        covered = coverage(auc, args.patients, args.simulations, args.resamples, args.seed, args.bca)
        alarms = false_alarms(auc, args.patients, args.pairs, args.resamples, args.seed)
        result[f"AUC {auc:.3g}"] = found = {"coverage": covered, "false alarms": alarms}
        methods = [method for method in METHODS if method in covered["auc"]]
        print(f"\nAUC {auc:.3g}, {args.patients} patients, {args.simulations} simulations: covered (above / below), %")
        print("| score | truth |", " | ".join(methods), "| false alarms |\n|" + " --- |" * (len(methods) + 3))
        for name, row in found["coverage"].items():
            cells = [f"{row[m]['covered']:.1f} ({row[m]['above']:.1f} / {row[m]['below']:.1f})" for m in methods]
            print(f"| {name} | {row['truth']:.4f} |", " | ".join(cells), f"| {found['false alarms'][name]:.1f} |")
        if args.out:
            args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
