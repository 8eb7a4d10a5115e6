"""Coverage of intervals of rare events that cluster by patient: flipped decisions, errors of a good model.

Part of coverage.py. Patients have 1 to ``most`` films each, equally often, and their flips are alike: a beta-binomial
of a given intra-patient correlation. Methods, beside ours: the percentile and the logit bootstrap of patients (the
latter was ours before), and Wilson's and Korn and Graubard's intervals with the effective number of films that the
spread between patients tells.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, logit
from scipy.stats import norm

from xray_opt.intervals import Tally, share

Floats = NDArray[np.float64]
Z = norm.ppf(0.975)
#: Patients, share of flips, most films a patient, correlation of a patient's films.
CASES = ((200, 0.02, 1, 0.0), (400, 0.01, 1, 0.0), (200, 0.02, 4, 0.3), (400, 0.01, 4, 0.3), (200, 0.02, 4, 0.8))


def clustered(
    chance: np.random.Generator, shape: tuple[int, int], truth: float, most: int, alike: float
) -> tuple[Floats, Floats]:
    """(simulations, patients) flips and films."""
    films = chance.integers(1, most + 1, shape)
    rates = np.full(shape, truth)
    if alike:
        sure = (1 - alike) / alike
        rates = chance.beta(truth * sure, (1 - truth) * sure, shape)
    return chance.binomial(films, rates).astype(np.float64), films.astype(np.float64)


def flips(
    patients: int, truth: float, most: int, alike: float, simulations: int, resamples: int, seed: int
) -> dict[str, dict[str, float]]:
    """Method → percent covered, above and below the truth, and mean width; without resamples no bootstrap."""
    chance = np.random.default_rng(seed)
    counts, films = clustered(chance, (simulations, patients), truth, most, alike)
    found = {"Wilson": wilson(counts, films), "Korn and Graubard": exact(counts, films), "ours": ours(counts, films)}
    if resamples:
        found = bootstrapped(chance, counts, films, resamples) | found
    return {method: _told(ends, truth) for method, ends in found.items()}


def _told(ends: Floats, truth: float) -> dict[str, float]:
    above, below = 100 * float((ends[0] > truth).mean()), 100 * float((ends[1] < truth).mean())
    width = float((ends[1] - ends[0]).mean())
    return {"covered": 100 - above - below, "above": above, "below": below, "width": width}


def effective(counts: Floats, films: Floats) -> tuple[Floats, Floats]:
    """(S,) shares, and how many independent films there are in effect: at most all; where none flips, the patients."""
    total, patients = films.sum(axis=1), films.shape[1]
    part = counts.sum(axis=1) / total
    spread = ((counts - part[:, None] * films) ** 2).sum(axis=1) * patients / (patients - 1) / total**2
    cases = np.divide(part * (1 - part), spread, out=np.full_like(part, patients), where=spread > 0)
    return part, np.minimum(cases, total)


def wilson(counts: Floats, films: Floats) -> Floats:
    """(2, S) ends."""
    part, cases = effective(counts, films)
    middle, whole = part + Z**2 / 2 / cases, 1 + Z**2 / cases
    half = Z * np.sqrt(part * (1 - part) / cases + (Z / 2 / cases) ** 2)
    return np.array([middle - half, middle + half]) / whole


def exact(counts: Floats, films: Floats) -> Floats:
    """(2, S) ends: Clopper and Pearson's for the effective number of films."""
    part, cases = effective(counts, films)
    hits = np.maximum(part * cases, 1e-12)
    low = np.where(part > 0, betaincinv(hits, cases - hits + 1, 0.025), 0.0)
    return np.array([low, betaincinv(hits + 1, np.maximum(cases - hits, 1e-12), 0.975)])


def ours(counts: Floats, films: Floats) -> Floats:
    """(2, S) ends of the package's own interval."""
    total = films.sum(axis=1, keepdims=True)
    parts = zip(counts / total, films / total, strict=True)
    found = [share(Tally(hits, among), float(hits.sum()), [films.shape[1]]) for hits, among in parts]
    return np.array([[one.low for one in found], [one.high for one in found]], dtype=np.float64)


def bootstrapped(chance: np.random.Generator, counts: Floats, films: Floats, resamples: int) -> dict[str, Floats]:
    """Method → (2, S) ends, from resamples of patients; at 0 the exact bound of so many patients."""
    found: dict[str, list[Any]] = {"percentile": [], "logit scale": []}
    for own, among in zip(counts, films, strict=True):
        patients = len(own)
        weights = chance.multinomial(patients, np.full(patients, 1 / patients), resamples).astype(np.float64)
        drawn, value = (weights @ own) / (weights @ among), own.sum() / among.sum()
        if not value:
            for ends in found.values():
                ends.append((0.0, 1 - 0.025 ** (1 / patients)))
            continue
        found["percentile"].append(np.quantile(drawn, [0.025, 0.975]))
        spread = Z * logit(np.maximum(drawn, drawn[drawn > 0].min() / 2)).std(ddof=1)
        found["logit scale"].append(1 / (1 + np.exp(-(logit(value) + np.array([-spread, spread])))))
    return {method: np.array(ends).T for method, ends in found.items()}


def table(simulations: int, resamples: int, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Case → method → coverage; printed as the table of docs/statistics.md."""
    result = {}
    for patients, truth, most, alike in CASES:
        case = f"{patients} patients, {'1 film' if most == 1 else f'1 to {most} films, alike {alike}'}, {truth:.0%}"
        result[case] = found = flips(patients, truth, most, alike, simulations, resamples, seed)
        if len(result) == 1:
            print(f"\nshares of {simulations} simulations: covered (above / below), %")
            print("| flips |", " | ".join(found), "|\n|" + " --- |" * (len(found) + 1))
        cells = [f"{one['covered']:.1f} ({one['above']:.1f} / {one['below']:.1f})" for one in found.values()]
        print(f"| {case} |", " | ".join(cells), "|", flush=True)
    return result
