"""Relaxations: minima against direct searches, failures with their reasons, and the cache."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT as AseEMT
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure
from scipy.optimize import minimize_scalar

from kldm.errors import KldmError
from kldm.interfaces import EnergyScale, Json
from kldm.metrics.relaxing import relaxation
from kldm.metrics.relaxing.relaxation import Relaxation, far_off, has_isolated_atoms, relaxed
from kldm.potentials import EMT, CHGNet
from tests.metals import fcc, ordered


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KLDM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def emt_energy(structure: Structure) -> float:
    atoms: Any = structure.to_ase_atoms()
    atoms.calc = AseEMT()  # type: ignore[no-untyped-call]
    return float(atoms.get_potential_energy())


class Pressing(Calculator):
    """Energy -p V: the cell grows for ever, and an energy that is not finite beyond a volume."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012 - as ASE declares it

    def __init__(self, pressure: float, end: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pressure, self.end = pressure, end

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)  # type: ignore[no-untyped-call]
        volume = atoms.get_volume()
        energy = -self.pressure * volume if volume < self.end else math.nan
        stress = -self.pressure * np.array([1.0, 1, 1, 0, 0, 0])
        self.results: dict[str, Any] = {"energy": energy, "forces": np.zeros((len(atoms), 3)), "stress": stress}


CALLS: list[str] = []
"""The potentials below leave a word here whenever a calculator is made."""


@attrs.frozen(kw_only=True)
class Toy:
    """A potential of the tests."""

    label = "toy"

    pressure: float = 0.1
    end: float = math.inf
    pause: float = 0.0

    @property
    def scale(self) -> EnergyScale:
        return "own"

    @property
    def identity(self) -> Mapping[str, Json]:
        return {"name": "toy", "pressure": self.pressure, "end": str(self.end)}

    def calculator(self) -> Calculator:
        CALLS.append("made")
        if self.pause:
            return Slow(self.pause)
        return Pressing(self.pressure, self.end)


class Slow(Calculator):
    """Takes its time."""

    implemented_properties = ["energy"]  # noqa: RUF012 - as ASE declares it

    def __init__(self, pause: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pause = pause

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        end = time.monotonic() + self.pause
        while time.monotonic() < end:
            time.sleep(0.01)
        self.results: dict[str, Any] = {"energy": 0.0}


@pytest.mark.parametrize("cell", ["frechet", "exp"])
@pytest.mark.parametrize("species", ["Cu", "Al"])
def test_the_cell_reaches_the_minimum(species: str, cell: Any) -> None:
    minimum = minimize_scalar(lambda edge: emt_energy(fcc(species, edge)), bounds=(3.2, 4.6), method="bounded")
    (result,) = relaxed([fcc(species, float(minimum.x) * 1.06)], EMT(), Relaxation(fmax=1e-3, cell=cell))
    assert result.structure is not None
    assert result.converged
    assert result.energy == pytest.approx(float(minimum.fun), abs=1e-5)
    assert result.structure.volume == pytest.approx(fcc(species, float(minimum.x)).volume, rel=2e-3)
    assert result.before == pytest.approx(emt_energy(fcc(species, float(minimum.x) * 1.06)))


def test_atoms_return_to_their_sites() -> None:
    (result,) = relaxed([ordered("Au", "Cu", 3.7, noise=0.03)], EMT(), Relaxation(fmax=1e-3))
    assert result.structure is not None
    assert result.steps > 5
    distances = result.structure.distance_matrix[np.triu_indices(4, 1)]
    assert distances == pytest.approx(result.structure.volume ** (1 / 3) / math.sqrt(2), rel=2e-3)
    assert [site.specie.symbol for site in result.structure] == ["Au", "Cu", "Cu", "Cu"]
    assert result.energy == pytest.approx(emt_energy(result.structure), abs=1e-9), "of the structure that is returned"


def test_a_fixed_cell_stays() -> None:
    start = ordered("Au", "Cu", 3.9, noise=0.03)
    (result,) = relaxed([start], EMT(), Relaxation(cell="fixed"))
    assert result.structure is not None
    assert result.converged
    assert np.array_equal(result.structure.lattice.matrix, start.lattice.matrix)
    assert result.energy < result.before


def test_no_step_is_the_energy_alone() -> None:
    start = ordered("Au", "Cu", 3.9, noise=0.03)
    (result,) = relaxed([start], EMT(), Relaxation(max_steps=0))
    assert result.structure is not None
    assert result.steps == 0
    assert not result.converged
    assert np.allclose(result.structure.cart_coords, start.cart_coords, atol=1e-9)
    assert result.energy == result.before == pytest.approx(emt_energy(start))


def test_steps_are_bounded() -> None:
    (result,) = relaxed([ordered("Au", "Cu", 3.7, noise=0.03)], EMT(), Relaxation(fmax=1e-6, max_steps=3))
    assert result.structure is not None
    assert (result.steps, result.converged) == (3, False)


def test_failures_have_reasons_and_touch_no_other() -> None:
    iron, copper = fcc("Fe", 3.6), fcc("Cu", 3.7)
    found = relaxed([iron, None, copper, iron], EMT(), Relaxation())
    assert [result.reason for result in found] == [
        "the potential failed: No EMT-potential for Fe",
        "no structure",
        "",
        "the potential failed: No EMT-potential for Fe",
    ]
    assert [result.structure is None for result in found] == [True, True, False, True]


def test_disordered_sites_have_no_energy() -> None:
    alloy = fcc("Cu", 3.7)
    alloy.replace_species({"Cu": {"Cu": 0.5, "Au": 0.5}})
    assert relaxed([alloy], EMT(), Relaxation())[0].reason == "it is disordered"


def test_oxidation_states_are_dropped() -> None:
    charged = fcc("Cu", 3.7).add_oxidation_state_by_element({"Cu": 1})
    (result,) = relaxed([charged], EMT(), Relaxation(max_steps=1))
    assert result.structure is not None
    assert [str(site.specie) for site in result.structure] == ["Cu"]


@pytest.mark.parametrize(
    ("toy", "reason"),
    [
        (Toy(), "the volume changed more than 5-fold"),
        (Toy(end=1.0), "energy not finite"),
        (Toy(end=12.0), "energy or structure not finite after relaxation"),
    ],
)
def test_what_flies_apart_has_failed(toy: Toy, reason: str) -> None:
    (result,) = relaxed([fcc("Cu", 3.6)], toy, Relaxation(max_steps=60))
    assert (result.structure, result.reason) == (None, reason)


def test_isolated_atoms_have_failed(cache: Path) -> None:
    """Whatever their energy is, and in a cell of one atom as in one of several."""
    alone, pair = fcc("Cu", 30.0), ordered("Au", "Cu", 30.0)
    sites = np.array([[0, 0, 0], [0.12, 0, 0], [0.5, 0.5, 0.5]])
    dimer = Structure(Lattice.cubic(20.0), ["Cu"] * 3, sites)
    found = relaxed([alone, pair, dimer, fcc("Cu", 3.6)], EMT(), Relaxation(max_steps=0))
    reason = "an atom has no other within 6 angstrom"
    assert [result.reason for result in found] == [reason, reason, reason, ""]
    assert CHGNet().cutoff == 6.0
    assert not has_isolated_atoms(Structure(Lattice.cubic(20.0), ["Cu"] * 2, sites[:2]), 6.0)


@pytest.mark.slow
def test_chgnet_does_not_see_isolated_atoms(cache: Path) -> None:
    """Its calculator would give them an energy, which converges at once (CederGroupHub/chgnet#55)."""
    pytest.importorskip("chgnet")
    helium = Structure(Lattice.cubic(30.0), ["He"], np.array([[0, 0, 0]]))
    hydrogen = Structure(Lattice.cubic(14.0), ["H", "H"], np.array([[0, 0, 0], [0.5, 0.0, 0]]))
    caesium = Structure(Lattice.cubic(6.16), ["Cs", "Cs"], np.array([[0, 0, 0], [0.5, 0.5, 0.5]]))
    found = relaxed([helium, hydrogen, caesium], CHGNet(device="cpu"), Relaxation(max_steps=0))
    reason = "an atom has no other within 6 angstrom"
    assert [result.reason for result in found] == [reason, reason, ""]


def test_energies_far_from_all_others_are_found() -> None:
    assert far_off([-3.0, -3.9, 4.19, -3.5, -3.2]) == [2]
    assert far_off([23.3, -3.0, -3.5, 4.19, -3.2]) == [0, 3]
    assert far_off([-3.0, -3.2, -30.0]) == [2]
    assert far_off([-3.0, -9.0]) == far_off([]) == far_off([-1.0, -3.0, -5.0, -7.0]) == []


def test_time_is_limited() -> None:
    (result,) = relaxed([fcc("Cu", 3.6)], Toy(pause=20.0), Relaxation(cell="fixed"), time_limit=0.2)
    assert (result.structure, result.reason) == (None, "time limit of 0.2 s")


def test_workers_change_nothing() -> None:
    given = [ordered("Au", "Cu", 3.7, noise=0.02, seed=seed) for seed in range(3)]
    settings = Relaxation(max_steps=5)
    alone = relaxed(given, EMT(), settings)
    shared = relaxed(given, EMT(), attrs.evolve(settings, largest_change=6.0), workers=2)  # another cache
    assert [result.energy for result in shared] == [result.energy for result in alone]


def only(cache: Path) -> Path:
    (file,) = (cache / "relaxations").glob("*.jsonl")
    return file


def test_what_was_relaxed_comes_from_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [fcc("Cu", 3.7), fcc("Ag", 4.0)]
    first = relaxed(given, EMT(), Relaxation())
    lines = only(cache).read_text()
    monkeypatch.setattr("kldm.metrics.relaxing.relaxation._relax", lambda *_, **__: pytest.fail("relaxed again"))
    again = relaxed(given[::-1], EMT(), Relaxation())
    assert [attrs.astuple(result, recurse=False)[1:] for result in again] == [
        attrs.astuple(result, recurse=False)[1:] for result in first[::-1]
    ]
    assert [result.structure for result in again] == [result.structure for result in first[::-1]]
    assert only(cache).read_text() == lines


def test_equal_structures_are_relaxed_once(cache: Path) -> None:
    found = relaxed([fcc("Cu", 3.7), fcc("Cu", 3.7)], EMT(), Relaxation())
    assert found[0].energy == found[1].energy
    assert sum(bool(line) for line in only(cache).read_text().splitlines()) == 1


def test_another_setting_or_potential_is_another_cache(cache: Path) -> None:
    for settings in (Relaxation(), Relaxation(fmax=0.01)):
        relaxed([fcc("Cu", 3.7)], EMT(), settings)
    assert len(list((cache / "relaxations").glob("*.jsonl"))) == 2


def test_a_failure_leaves_nothing_behind() -> None:
    """ASE's EMT that failed is in no state for another structure of the same species."""
    found = relaxed([fcc("Fe", edge) for edge in (3.5, 3.6, 3.7)], EMT(), Relaxation())
    assert {result.reason for result in found} == {"the potential failed: No EMT-potential for Fe"}


def test_what_is_finished_is_kept_when_the_work_is_interrupted(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [fcc("Cu", 3.7), fcc("Ag", 4.0), fcc("Au", 4.1)]
    calls = []

    def interrupted(structure: Structure, **settings: Any) -> Any:
        calls.append(structure)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return relax(structure, **settings)

    relax = relaxation._relax
    monkeypatch.setattr(relaxation, "_relax", interrupted)
    with pytest.raises(KeyboardInterrupt):
        relaxed(given, EMT(), Relaxation(), time_limit=None)  # in this process
    assert sum(bool(line) for line in only(cache).read_text().splitlines()) == 2


def test_workers_keep_what_they_finish(cache: Path) -> None:
    relaxed([fcc("Cu", 3.7), fcc("Ag", 4.0)], EMT(), Relaxation(max_steps=2), workers=2)
    rows = [json.loads(line) for line in only(cache).read_text().splitlines() if line]
    assert len({row["key"] for row in rows}) == len(rows) == 2


def test_a_warning_comes_once(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.mkdir()
    (cache / "relaxations").write_text("a file where the folder should be")
    relaxed([fcc("Cu", 3.7), fcc("Ag", 4.0), fcc("Au", 4.1)], EMT(), Relaxation(max_steps=1))
    assert caplog.text.count("not kept for the next time") == 1


def test_failures_are_tried_again(cache: Path) -> None:
    relaxed([fcc("Fe", 3.6)], EMT(), Relaxation())
    assert only(cache).read_text() == ""


def test_a_line_cut_short_costs_one_relaxation(cache: Path) -> None:
    given = [fcc("Cu", 3.7), fcc("Ag", 4.0)]
    first = relaxed(given, EMT(), Relaxation())
    text = only(cache).read_text()
    only(cache).write_text(text[: len(text) - 40])
    assert [result.energy for result in relaxed(given, EMT(), Relaxation())] == [result.energy for result in first]
    rows = []
    for line in only(cache).read_text().splitlines():
        try:
            rows.append(json.loads(line)["key"])
        except ValueError:
            continue
    assert len(rows) == 2, "the new line does not hang on the broken one"


def test_a_cache_that_cannot_be_written_is_a_warning(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.mkdir()
    (cache / "relaxations").write_text("a file where the folder should be")
    (result,) = relaxed([fcc("Cu", 3.7)], EMT(), Relaxation())
    assert result.structure is not None
    assert "not kept for the next time" in caplog.text


@pytest.fixture
def fresh() -> Iterator[None]:
    CALLS.clear()
    yield
    CALLS.clear()


@pytest.mark.usefixtures("fresh")
def test_weights_are_loaded_once() -> None:
    for edge in (3.5, 3.6):
        relaxed([fcc("Cu", edge), fcc("Cu", edge + 0.01)], Toy(pressure=0.37), Relaxation(max_steps=1))
    assert CALLS == ["made"]


@pytest.mark.parametrize(
    ("bad", "place"),
    [
        ({"fmax": 0.0}, "fmax"),
        ({"fmax": math.nan}, "fmax"),
        ({"max_steps": -1}, "max_steps"),
        ({"largest_change": 1.0}, "largest_change"),
    ],
)
def test_settings_that_mean_nothing(bad: dict[str, Any], place: str) -> None:
    with pytest.raises(KldmError) as caught:
        Relaxation(**bad)
    assert caught.value.place == place
