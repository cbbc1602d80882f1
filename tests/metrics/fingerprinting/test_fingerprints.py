"""Fingerprints against the plain matminer calls, the structures that have none, and the cache of reference sets."""

import json
import logging
import math
import os
import threading
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from matminer.featurizers.composition import ElementProperty
from matminer.featurizers.site import CrystalNNFingerprint
from pymatgen.core.composition import Composition
from pymatgen.core.lattice import Lattice
from pymatgen.core.periodic_table import DummySpecies
from pymatgen.core.structure import Structure

from kldm.data import Data
from kldm.data.convert import to_structures
from kldm.metrics.fingerprinting import fingerprints as module
from kldm.metrics.fingerprinting.fingerprints import (
    Fingerprint,
    cached_fingerprints,
    composition_fingerprint,
    fingerprint,
    fingerprints_of,
    has_structure_fingerprint,
    structure_fingerprint,
)
from kldm.metrics.structure import structural_validity
from kldm.runtime.numbers import Float


@cache
def prototypes() -> tuple[Structure, ...]:
    """Real structures of at most 6 atoms, as different as they come."""
    small = [s for s in to_structures(Data(name="aflow_prototypes").load("test")) if len(s) <= 6]
    return tuple(small[:: max(1, len(small) // 12)][:12])


def perturbed(structure: Structure, size: float, seed: int = 0) -> Structure:
    rng = np.random.default_rng(seed)
    cell = structure.lattice.matrix * (1 + size * rng.normal(size=(3, 3)) / 5)
    places = structure.frac_coords + size * rng.normal(size=(len(structure), 3)) / 5
    return Structure(cell, structure.species, places)


def salt(edge: float = 5.64, x: float = 0.5, first: str = "Na") -> Structure:
    return Structure(Lattice.cubic(edge / 1.4), [first, "Cl"], np.array([[0, 0, 0], [x, 0.5, 0.5]]))


def plain(structure: Structure) -> Float:
    """The definition: every site by matminer, mean over sites."""
    featurizer = CrystalNNFingerprint.from_preset("ops")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sites = [featurizer.featurize(structure, i) for i in range(len(structure))]
    return np.asarray(np.mean(sites, axis=0))


def scaled(composition: Composition) -> Float:
    """The definition: Magpie by matminer, scaled by the published constants."""
    constants = json.loads(Path(module.__file__).with_name("magpie_scaler.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw = ElementProperty.from_preset("magpie", impute_nan=False).featurize(composition)
    values = (np.array(raw) - np.array(constants["means"])) / np.array(constants["stds"])
    values[np.isnan(values)] = 0
    return np.asarray(values)


def test_structures_as_plain_matminer() -> None:
    """To the last bit: symmetric structures, where ties and thresholds bite, and perturbed ones."""
    for number, structure in enumerate(prototypes()):
        for crystal in (structure, perturbed(structure, 0.1, number)):
            found = structure_fingerprint(crystal)
            assert found.shape == (61,)
            assert np.array_equal(found, plain(crystal)), crystal.formula


@pytest.mark.slow
def test_perovskites_as_plain_matminer() -> None:
    if not (Path(os.environ.get("KLDM_DATA", "")) / "perov_5").is_dir():
        pytest.skip("needs Perov-5 under KLDM_DATA")
    for structure in to_structures(Data(name="perov_5").load("val"))[:100]:
        assert np.array_equal(structure_fingerprint(structure), plain(structure))


def test_compositions_as_plain_matminer() -> None:
    formulas = ["Na", "NaCl", "LiFePO4", "H2O", "XeF2", "PuO2", "Cs2AgBiBr6", "He", "RnF2", "Bk2O3", "Na0.5K0.5Cl"]
    for formula in formulas:
        found = composition_fingerprint(Composition(formula))
        assert found.shape == (132,)
        assert np.isfinite(found).all()
        assert found == pytest.approx(scaled(Composition(formula)), abs=1e-12)


def test_constants() -> None:
    """Column 0 is the smallest atomic number, whose published mean is 21.19."""
    means, stds = module._scaler()
    assert means.shape == stds.shape == (132,)
    assert means[0] == 21.194441759304013
    assert stds[-1] == 85.980205895116
    assert composition_fingerprint(Composition("NaCl"))[0] == (11 - means[0]) / stds[0]


def test_compositions_depend_on_fractions_only() -> None:
    single, supercell = (composition_fingerprint(Composition(formula)) for formula in ("ClNa", "Na12Cl12"))
    assert single is supercell
    with pytest.raises(ValueError, match="read-only"):
        single[0] = 0.0


def test_oxidation_states_do_not_change_the_fingerprint() -> None:
    ions = salt().add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    found, bare = fingerprint(ions), fingerprint(salt())
    assert found.structure is not None
    assert bare.structure is not None
    assert np.array_equal(found.structure, bare.structure)
    assert found.composition is bare.composition
    assert not np.array_equal(plain(ions), plain(salt()))
    assert ions[0].specie.oxi_state == 1


def test_hopeless_structures_have_a_reason() -> None:
    hopeless = {
        "no structure": None,
        "coordinates not finite": salt(x=math.nan),
        "cell not finite": Structure(Lattice(np.full((3, 3), math.nan)), ["Na"], [[0, 0, 0]]),
        "volume below 0.1 A^3": salt(edge=0.5),
        "no atoms": Structure(Lattice.cubic(4), [], []),
        "cell length not positive": Structure(Lattice.from_parameters(-4, 4, 4, 90, 90, 90), ["Na"], [[0, 0, 0]]),
        "element outside 1 to 118": Structure(Lattice.cubic(4), [DummySpecies("X")], [[0, 0, 0]]),
        "no fingerprint: unsupported operand type(s) for +: 'NoneType' and 'NoneType'": Structure(
            Lattice.cubic(4), ["Og"], [[0, 0, 0]]
        ),
    }
    for reason, structure in hopeless.items():
        found = fingerprint(structure)
        assert (found.structure, found.composition, found.exists) == (None, None, False)
        assert found.reason == reason


def test_close_atoms_are_no_obstacle() -> None:
    """Coverage is over all structures, valid or not."""
    found = fingerprint(salt(x=0.01))
    close = Structure(Lattice.cubic(4), ["Na", "Cl"], np.array([[0, 0, 0], [0.1, 0, 0]]))
    assert found.exists
    assert fingerprint(close).exists


def test_one_bad_site_means_no_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, structure: Structure, site: int) -> list[float]:
        if site == 1:
            raise RuntimeError("infinite vertex")
        return [0.0] * 61

    monkeypatch.setattr(module._SiteFeaturizer, "featurize", broken)
    assert fingerprint(salt()).reason == "no fingerprint: infinite vertex"
    monkeypatch.setattr(module._SiteFeaturizer, "featurize", lambda *_: [math.nan] * 61)
    assert fingerprint(salt()).reason == "no fingerprint: not finite"


def test_many() -> None:
    """Results are in order, with failures among them; threads and processes give the same numbers."""
    items = [salt(), None, salt(x=math.nan), salt(first="K"), prototypes()[0]]
    serial, parallel = fingerprints_of(items), fingerprints_of(items, workers=2)
    in_thread: list[Fingerprint] = []
    thread = threading.Thread(target=lambda: in_thread.extend(fingerprints_of(items)))
    thread.start()
    thread.join()
    assert [f.reason for f in serial] == ["", "no structure", "coordinates not finite", "", ""]
    for first, second, third in zip(serial, parallel, in_thread, strict=True):
        assert first.reason == second.reason == third.reason
        for other in (second, third):
            assert np.array_equal(first.structure, other.structure)  # type: ignore[arg-type]
            assert np.array_equal(first.composition, other.composition)  # type: ignore[arg-type]


def test_time_limit() -> None:
    assert fingerprints_of([salt()], time_limit=1e-3)[0].reason == "no fingerprint: time limit of 0.001 s"


def test_libraries_warnings_stay_inside() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fingerprint(salt(first="Xe")).exists


class Counter:
    """Counts the calls that compute fingerprints."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        monkeypatch.setenv("KLDM_CACHE", str(folder))
        monkeypatch.setattr(module, "SMALLEST_CACHED", 2)
        monkeypatch.setattr(module, "fingerprints_of", self)
        self.calls = 0
        self.one_at_a_time = threading.Lock()  # all threads share the warning filters

    def __call__(self, structures: list[Structure | None], **_: object) -> tuple[Fingerprint, ...]:
        with self.one_at_a_time:
            self.calls += 1
            return tuple(fingerprint(structure) for structure in structures)


def same(first: tuple[Fingerprint, ...], second: tuple[Fingerprint, ...]) -> bool:
    return len(first) == len(second) and all(
        a.reason == b.reason
        and a.exists == b.exists
        and (
            a.structure is None
            or (np.array_equal(a.structure, b.structure) and np.array_equal(a.composition, b.composition))  # type: ignore[arg-type]
        )
        for a, b in zip(first, second, strict=True)
    )


def test_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counter = Counter(monkeypatch, tmp_path)
    structures = [salt(), salt(x=math.nan), prototypes()[1], None]
    first = cached_fingerprints(structures)
    assert counter.calls == 1
    assert [f.exists for f in first] == [True, False, True, False]
    assert same(cached_fingerprints([s and s.copy() for s in structures]), first)
    assert counter.calls == 1
    others = [
        [*structures[:2], salt(x=0.5 + 1e-12), None],
        structures[::-1],
        structures[:2],
        [salt(first="K"), *structures[1:]],
    ]
    for number, other in enumerate(others, start=2):
        cached_fingerprints(other)
        assert counter.calls == number
    cached_fingerprints(structures, time_limit=1.0)
    assert counter.calls == 2 + len(others)
    assert len(list((tmp_path / "fingerprints").iterdir())) == 2 + len(others)


@pytest.mark.parametrize("content", [b"", b"not safetensors", None])
def test_a_broken_cache_file_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    counter = Counter(monkeypatch, tmp_path)
    first = cached_fingerprints([salt(), salt(first="K")])
    (path,) = (tmp_path / "fingerprints").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert same(cached_fingerprints([salt(), salt(first="K")]), first)
    assert counter.calls == 2
    assert same(cached_fingerprints([salt(), salt(first="K")]), first)
    assert counter.calls == 2


def test_a_cache_file_of_another_set_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counter = Counter(monkeypatch, tmp_path)
    cached_fingerprints([salt(), salt(first="K")])
    (two,) = (tmp_path / "fingerprints").iterdir()
    cached_fingerprints([salt(), salt(first="K"), salt(first="Rb")])
    three = next(path for path in (tmp_path / "fingerprints").iterdir() if path != two)
    two.write_bytes(three.read_bytes())
    assert len(cached_fingerprints([salt(), salt(first="K")])) == 2
    assert counter.calls == 3


def test_an_unwritable_folder_only_costs_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    counter = Counter(monkeypatch, tmp_path / "file")
    with caplog.at_level(logging.WARNING, "kldm.metrics"):
        found = cached_fingerprints([salt(), salt(first="K")])
    assert all(f.exists for f in found)
    assert counter.calls == 1
    (record,) = caplog.records
    assert "fingerprints are not kept for the next time" in record.message


def test_small_sets_leave_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KLDM_CACHE", str(tmp_path))
    assert cached_fingerprints([salt()])[0].exists
    assert not list(tmp_path.iterdir())


def test_existence_is_known_without_the_fingerprint() -> None:
    """On real cells and on random ones that are structurally valid, whichever of them have a fingerprint."""
    rng = np.random.default_rng(0)
    structures = list(prototypes())
    for structure in list(structures):
        lattice = Lattice.from_parameters(*rng.uniform(1.0, 9.0, 3), *rng.uniform(50, 130, 3))
        if np.isfinite(lattice.matrix).all() and lattice.volume > 0.5:
            structures.append(Structure(lattice, structure.species, rng.random(structure.frac_coords.shape)))
    valid = [structure for structure in structures if not structural_validity(structure)]
    assert len(valid) > 12
    for structure in valid:
        assert answer(has_structure_fingerprint, structure) == answer(
            lambda structure: bool(np.isfinite(structure_fingerprint(structure)).all()), structure
        )


def answer(asked: Callable[[Structure], bool], structure: Structure) -> bool:
    try:
        return asked(structure)
    except Exception:
        return False
