"""The full de-novo metric against a plain oracle of matminer, smact-free counts and scipy, and at its edges."""

import json
import math
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matminer.featurizers.composition import ElementProperty
from matminer.featurizers.site import CrystalNNFingerprint
from pymatgen.core.lattice import Lattice
from pymatgen.core.periodic_table import DummySpecies
from pymatgen.core.structure import Structure
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance

from kldm.data import Data
from kldm.data.convert import to_structures
from kldm.errors import KldmError
from kldm.interfaces import Candidate, Measurement, Samples
from kldm.metrics.composition import compositional_validity
from kldm.metrics.de_novo import DeNovo
from kldm.metrics.fingerprinting import fingerprints


@cache
def prototypes() -> tuple[Structure, ...]:
    small = [s for s in to_structures(Data(name="aflow_prototypes").load("test")) if len(s) <= 4]
    return tuple(small[:: max(1, len(small) // 12)][:12])


def perturbed(structure: Structure, size: float, seed: int = 0) -> Structure:
    rng = np.random.default_rng(seed)
    cell = structure.lattice.matrix * (1 + size * rng.normal(size=(3, 3)) / 5)
    return Structure(cell, structure.species, structure.frac_coords + size * rng.normal(size=(len(structure), 3)) / 5)


def salt(edge: float = 4.1, x: float = 0.5, first: str = "Cs", second: str = "Cl") -> Structure:
    return Structure(Lattice.cubic(edge), [first, second], np.array([[0, 0, 0], [x, 0.5, 0.5]]))


def hopeless() -> dict[str, Structure | None]:
    cell = Lattice.cubic(4.1)
    return {
        "coordinates not finite": salt(x=math.nan),
        "cell length not positive": Structure(Lattice.from_parameters(-4, 4, 4, 90, 90, 90), ["Na"], [[0, 0, 0]]),
        "cell angle outside (0, 180) degrees": Structure([[4, 0, 0], [0, 4, 0], [4, 0, 0]], ["Na"], [[0, 0, 0]]),
        "volume below 0.1 A^3": salt(edge=0.4),
        "X0+ is no element": Structure(cell, [DummySpecies("X"), "Cl"], np.array([[0, 0, 0], [0.5, 0.5, 0.5]])),
        "no atoms": Structure(cell, [], []),
        "no structure": None,
    }


def answers(*structures: Structure | None) -> tuple[Candidate, ...]:
    return tuple(Candidate(number, 0, structure) for number, structure in enumerate(structures))


def measure(generated: tuple[Candidate, ...], reference: Sequence[Structure | None], **options: Any) -> Measurement:
    return DeNovo(**options).measure(Samples(generated, tuple(reference)))


def oracle(generated: list[Structure | None], reference: list[Structure], s: float, c: float) -> dict[str, float]:
    """The definitions by plain, serial calls; every structure that is not None must be constructible for matminer."""
    sites, magpie = CrystalNNFingerprint.from_preset("ops"), ElementProperty.from_preset("magpie", impute_nan=False)
    constants = json.loads(Path(fingerprints.__file__).with_name("magpie_scaler.json").read_text())

    def both(structure: Structure) -> tuple[Any, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mean = np.mean([sites.featurize(structure, i) for i in range(len(structure))], axis=0)
            raw = np.array(magpie.featurize(structure.composition))
        return mean, np.nan_to_num((raw - np.array(constants["means"])) / np.array(constants["stds"]), nan=0.0)

    built = [structure for structure in generated if structure is not None]
    ours, theirs = [both(s) for s in built], [both(s) for s in reference]
    structure = cdist([s for s, _ in ours], [s for s, _ in theirs])
    composition = cdist([c for _, c in ours], [c for _, c in theirs])
    possible = [bool((s.distance_matrix + 9 * np.eye(len(s)) >= 0.5).all()) for s in built]
    sensible = [not compositional_validity(s.composition) for s in built]
    valid = [s for s, p, q in zip(built, possible, sensible, strict=True) if p and q]
    elements = [[len(s.composition.elements) for s in side] for side in (valid, reference)]
    densities = [[s.density for s in side] for side in (valid, reference)]
    total = len(generated)
    return {
        "struct_valid": sum(possible) / total,
        "comp_valid": sum(sensible) / total,
        "comp_valid_icsd24": sum(not compositional_validity(s.composition, states="icsd24") for s in built) / total,
        "valid": len(valid) / total,
        "cov_recall": np.mean((structure.min(0) <= s) & (composition.min(0) <= c)),
        "cov_precision": np.sum((structure.min(1) <= s) & (composition.min(1) <= c)) / total,
        "amsd_recall": structure.min(0).mean(),
        "amsd_precision": structure.min(1).mean(),
        "amcd_recall": composition.min(0).mean(),
        "amcd_precision": composition.min(1).mean(),
        "wdist_density": wasserstein_distance(*densities),
        "wdist_num_elements": wasserstein_distance(*elements),
    }


@pytest.mark.parametrize("cutoffs", ["mp_20", "perov_5"])
def test_values_are_those_of_the_plain_definitions(cutoffs: str) -> None:
    """Real structures, perturbed copies, invalid but constructed ones, and a failure."""
    reference = list(prototypes())
    close = Structure(Lattice.cubic(4), ["Na", "Cl"], np.array([[0, 0, 0], [0.1, 0, 0]]))
    generated = [
        *(perturbed(structure, 0.3, seed) for seed, structure in enumerate(reference[::2])),
        close,
        None,
        salt(first="Na", second="K"),
        salt(first="Ar", second="O"),
    ]
    found = measure(answers(*generated), reference, cutoffs=cutoffs)
    expected = oracle(generated, reference, *{"mp_20": (0.4, 10.0), "perov_5": (0.2, 4.0)}[cutoffs])
    assert 0 < expected["valid"] < expected["struct_valid"] < 1
    assert found.values == pytest.approx(expected, abs=1e-10)
    assert found.definition["counts"]["fingerprints"] == len(generated) - 1  # type: ignore[index, call-overload]


def test_workers_do_not_change_the_result() -> None:
    generated = answers(*hopeless().values(), salt(), perturbed(prototypes()[0], 0.2))
    serial, parallel = (measure(generated, list(prototypes()[:3]), workers=workers) for workers in (1, 2))
    assert (parallel.values, parallel.rows, parallel.definition) == (serial.values, serial.rows, serial.definition)


def test_one_good_among_the_hopeless() -> None:
    """Each bad one has a row and a reason and stays in every denominator."""
    generated = answers(salt(), *hopeless().values())
    found, total = measure(generated, [salt()]), len(generated)
    assert [row["reason"] for row in found.rows] == ["", *hopeless()]
    assert [row["fingerprint"] for row in found.rows] == [True] + [False] * (total - 1)
    assert [row["struct_valid"] for row in found.rows] == [True] + [False] * (total - 1)
    assert found.values["struct_valid"] == found.values["valid"] == found.values["cov_precision"] == 1 / total
    assert found.values["cov_recall"] == 1.0
    assert found.values["wdist_density"] == 0.0
    assert found.rows[0]["formula"] == "CsCl"
    assert set(found.rows[0]) == {
        *("target", "candidate", "formula", "struct_valid", "comp_valid", "fingerprint", "reason", "rms", "max_dist")
    }
    failures = found.definition["counts"]["failures"]  # type: ignore[index, call-overload]
    assert failures == dict.fromkeys(sorted(hopeless()), 1)


def test_the_composition_of_an_impossible_cell_still_counts() -> None:
    found = measure(answers(salt(x=math.nan)), [salt()])
    assert (found.values["struct_valid"], found.values["comp_valid"]) == (0.0, 1.0)


@pytest.mark.usefixtures("in_this_process")
def test_valid_asks_for_a_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("infinite vertex")

    monkeypatch.setattr(fingerprints, "structure_fingerprint", broken)
    found = measure(answers(salt()), [salt()])
    assert (found.values["struct_valid"], found.values["comp_valid"], found.values["valid"]) == (1.0, 1.0, 0.0)
    assert found.rows[0]["reason"] == "no fingerprint: infinite vertex"
    assert found.values["wdist_density"] is None
    assert found.values["cov_recall"] is None
    assert "1 of 1 reference structures have no fingerprint; left out." in found.notes


def test_only_valid_ones_are_covered_under_the_kldm_rule() -> None:
    """A composition that smact refuses is as near to the reference as can be, and counts by CDVAE's rule alone."""
    strange = salt(first="Ar", second="O", edge=3.0)
    generated = answers(strange, salt())
    every, valid = (measure(generated, [strange, salt()], valid_only=only) for only in (False, True))
    assert (every.values["cov_recall"], every.values["cov_precision"]) == (1.0, 1.0)
    assert (valid.values["cov_recall"], valid.values["cov_precision"]) == (0.5, 0.5)
    assert every.values["valid"] == valid.values["valid"] == 0.5
    assert [row["fingerprint"] for row in valid.rows] == [False, True]
    assert valid.rows[0]["reason"] == every.rows[0]["reason"] != ""


def test_draw() -> None:
    generated = answers(*(salt(edge=4 + 0.1 * number) for number in range(8)))
    draws = [
        measure(order, [salt()], draw=3, seed=seed, coverage=False).values["wdist_density"]
        for seed, order in ((0, generated), (0, generated[::-1]), (1, generated))
    ]
    assert draws[0] == draws[1] != draws[2]
    densities = sorted(abs(structure.density - salt().density) for c in generated if (structure := c.structure))
    assert draws[0] is not None
    assert np.mean(densities[:3]) <= draws[0] <= np.mean(densities[-3:])
    found = measure(generated, [salt()], draw=1000, coverage=False)
    assert found.values == measure(generated, [salt()], coverage=False).values
    assert "Only 8 candidates are valid, fewer than draw = 1000; all are taken." in found.notes
    assert found.definition["counts"]["wdist_candidates"] == 8  # type: ignore[index, call-overload]


def test_without_coverage_no_fingerprint_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "fingerprint", lambda _: pytest.fail("a fingerprint was made"))
    found = measure(answers(salt(), None), [salt()], coverage=False)
    assert found.values["valid"] == 0.5
    assert not any(name.startswith(("cov", "am")) for name in found.values)
    assert [row["fingerprint"] for row in found.rows] == [None, None]
    assert any(note.startswith("Coverage is off") for note in found.notes)


def test_a_reference_without_fingerprint_is_left_out_and_said() -> None:
    found = measure(answers(salt(), salt(edge=4.4)), [salt(), salt(x=math.nan), None])
    assert found.values["cov_recall"] == 1.0
    assert found.values["wdist_num_elements"] == 0.0
    assert "2 of 3 reference structures have no fingerprint; left out." in found.notes
    assert found.definition["counts"]["reference_failures"] == {  # type: ignore[index, call-overload]
        "coordinates not finite": 1,
        "no structure": 1,
    }


def test_implausible_results_are_pointed_out() -> None:
    other = salt(first="K", second="Br", edge=3.9)
    same = measure(answers(salt(), salt(), salt()), [other])
    assert any(note.startswith("All 3 candidates are valid and share formula and cell") for note in same.notes)
    copies = measure(answers(salt(), other, None), [other, salt()])
    assert any(note.startswith("All 2 fingerprints of candidates are those of reference") for note in copies.notes)
    fine = measure(answers(salt(edge=4.3), perturbed(other, 0.5)), [other, salt()])
    assert fine.notes == ()
    mpts = measure(answers(salt(edge=4.3), perturbed(other, 0.5)), [other, salt()], cutoffs="mpts_52")
    assert mpts.notes == ("No cutoffs are published for mpts_52; those of mp_20 are used.",)
    assert mpts.values == fine.values
    assert "unpublished" in str(mpts.definition["coverage"])


def test_nothing() -> None:
    nothing = measure((), [salt()])
    assert set(nothing.values.values()) == {None}
    assert nothing.notes == ("There are no candidates, so nothing is defined.",)
    failed = measure(answers(None, None), [salt()])
    assert {name for name, value in failed.values.items() if value == 0.0} == {
        *("struct_valid", "comp_valid", "comp_valid_icsd24", "valid", "cov_recall", "cov_precision")
    }
    assert "None of the 2 candidates has a structure." in failed.notes
    alone = measure(answers(salt()), [])
    assert alone.values["valid"] == 1.0
    assert alone.values["cov_precision"] is alone.values["wdist_density"] is None
    assert any(note.startswith("The reference is empty") for note in alone.notes)


def test_sets_of_states_and_versions_are_named() -> None:
    found = measure(answers(salt()), [salt()], states="smact14", legacy=True)
    assert "2.2.1 (legacy)" in str(found.definition["rules"])
    assert {"pymatgen", "matminer", "smact", "scipy"} <= set(found.definition["versions"])  # type: ignore[arg-type]


def test_time_limit_is_a_failure() -> None:
    found = measure(answers(prototypes()[0]), [prototypes()[0]], time_limit=1e-3)
    assert found.values["valid"] == 0.0
    assert "time limit of 0.001 s" in found.rows[0]["reason"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutoffs": "mp20"}, "cutoffs: must be one of mp_20, .* did you mean 'mp_20'"),
        ({"draw": 0}, "draw: must be at least 1, got 0"),
        ({"workers": 0}, "workers: must be a number of processes"),
        ({"time_limit": 0.0}, "time_limit: must be above 0"),
        ({"time_limit": math.nan}, "time_limit: must be above 0 .* got nan"),
        ({"states": "pauling"}, "states: must be one of smact14, icsd24"),
        ({"states": "icsd24", "legacy": True}, "legacy: there is no legacy form"),
    ],
)
def test_users_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(KldmError, match=message):
        DeNovo(**options)
