"""Evaluation as its definitions read: one structure after another, with pymatgen, smact and matminer alone."""

import itertools
import math
import warnings
from collections.abc import Sequence
from functools import cache, reduce
from typing import Any

import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core.structure import Structure

MOST_COMBINATIONS = 10_000_000


def structure_valid(structure: Structure) -> bool:
    """No two atoms within 0.5 angstrom, and at least 0.1 cubic angstrom (CDVAE)."""
    distances = np.array(structure.distance_matrix)
    np.fill_diagonal(distances, math.inf)
    return bool(distances.min() >= 0.5 and structure.volume >= 0.1)


def composition_valid(structure: Structure) -> bool:
    """Some choice of one oxidation state (smact14) per element is neutral and passes the Pauling test."""
    import smact
    from smact.screening import pauling_test

    amounts = structure.composition.get_el_amt_dict()
    symbols = sorted(amounts)
    counts = [round(amounts[symbol]) for symbol in symbols]
    divisor = reduce(math.gcd, counts)
    counts = [count // divisor for count in counts]
    if len(symbols) == 1 or all(symbol in smact.metals for symbol in symbols):
        return True
    elements = [smact.Element(symbol) for symbol in symbols]
    states = [element.oxidation_states_smact14 or [] for element in elements]
    if math.prod(map(len, states)) > MOST_COMBINATIONS:
        return False
    electronegativities = [element.pauling_eneg for element in elements]
    for charges in itertools.product(*states):
        if smact.neutral_ratios(list(charges), stoichs=[(count,) for count in counts], threshold=max(counts)) and (
            pauling_test(list(charges), electronegativities)
        ):
            return True
    return False


@cache
def _featurizers() -> tuple[Any, Any]:
    from matminer.featurizers.composition import ElementProperty
    from matminer.featurizers.site import CrystalNNFingerprint

    return CrystalNNFingerprint.from_preset("ops"), ElementProperty.from_preset("magpie", impute_nan=False)


def structure_fingerprint(structure: Structure) -> Any:
    """CrystalNN ops, mean over the sites; None where a site raises."""
    site_featurizer, _ = _featurizers()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.mean([site_featurizer.featurize(structure, i) for i in range(len(structure))], axis=0)
    except Exception:  # as the reference has it: whatever is raised, there is none
        return None


def composition_fingerprint(structure: Structure) -> Any:
    """Magpie, not scaled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.array(_featurizers()[1].featurize(structure.composition))


def match_rates(
    reference: Sequence[Structure], answers: Sequence[Sequence[Structure]], full: bool
) -> tuple[float, float, float, float]:
    """match_rate@1, rmse@1, match_rate@k, rmse@k: every pair is matched, every structure takes every test."""
    matcher = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)
    first: list[float] = []
    best: list[float] = []
    for target, candidates in zip(reference, answers, strict=True):
        allowed = not full or _all_valid(target)
        found: list[float | None] = []
        for candidate in candidates:
            valid = _all_valid(candidate) if full else structure_valid(candidate)
            rms = matcher.get_rms_dist(candidate, target) if valid and allowed else None  # type: ignore[no-untyped-call]
            found.append(None if rms is None else float(rms[0]))
        if found[0] is not None:
            first.append(found[0])
        known = [rms for rms in found if rms is not None]
        if known:
            best.append(min(known))
    return len(first) / len(reference), _mean(first), len(best) / len(reference), _mean(best)


def _all_valid(structure: Structure) -> bool:
    valid = structure_valid(structure), composition_valid(structure), structure_fingerprint(structure) is not None
    return all(valid)


def validity_and_fingerprints(structures: Sequence[Structure]) -> tuple[int, int, list[Any]]:
    """Structurally valid, compositionally valid, and the fingerprints of all: the expensive part of de-novo metrics."""
    structural = sum(structure_valid(structure) for structure in structures)
    compositional = sum(composition_valid(structure) for structure in structures)
    for structure in structures:
        composition_fingerprint(structure)
    return structural, compositional, [structure_fingerprint(structure) for structure in structures]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
