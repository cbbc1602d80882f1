"""The metric of stability: its values by hand, denominators that never shrink, and what it says without energies."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pymatgen.core.structure import Structure

from kldm.errors import KldmError
from kldm.interfaces import Candidate, Measurement, Samples
from kldm.metrics import Relaxation, Stability
from kldm.metrics.relaxing.relaxation import relaxed
from kldm.potentials import EMT
from tests.metals import fcc, ordered

QUICK = Relaxation(max_steps=3)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KLDM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def samples(structures: Sequence[Structure | None], reference: Sequence[Structure | None] = ()) -> Samples:
    made = tuple(
        Candidate(n, 0, structure, "" if structure else "never built") for n, structure in enumerate(structures)
    )
    return Samples(made, tuple(reference))


def written(path: Path, energies: dict[str, float], **more: Any) -> Path:
    records = [{"composition": {name: 1.0}, "energy": energy, **more} for name, energy in energies.items()]
    path.write_text(json.dumps(records))
    return path


def own(path: Path, energies: dict[str, float]) -> Path:
    return written(path, energies, parameters={"potential": dict(EMT().identity)})


GIVEN: tuple[Structure | None, ...] = (
    ordered("Au", "Cu", 3.75, noise=0.02),  # 0: first of its kind, and known
    ordered("Cu", "Au", 4.0, noise=0.02),  # 1: new
    ordered("Cu", "Au", 3.98, noise=0.02, seed=1),  # 2: 1 again
    fcc("Fe", 3.6),  # 3: emt.v1 knows no iron
    ordered("Pt", "Cu", 3.8),  # 4: the hull below lacks platinum
    None,  # 5
    ordered("Au", "Cu", 3.7, noise=math.nan),  # 6
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measurement:
    """Heights of about 0.02 eV/atom for 0, and -0.03 for 1 and 2, by a hull made for it."""
    energies = [result.energy / 4 for result in relaxed(GIVEN[:2], EMT(), QUICK)]
    # heights h0, h1 of Cu3Au and CuAu3 above the line from Cu at x to Au at y: (3 x + y) / 4 = e0 - h0 and so on
    first, second = energies[0] - 0.02, energies[1] + 0.03
    x, y = (3 * first - second) / 2, (3 * second - first) / 2
    path = own(tmp_path_factory.mktemp("hull") / "entries.json", {"Cu": x, "Au": y, "Ag": 0.0})
    metric = Stability(potential=EMT(), relaxation=QUICK, hull=(path,), thresholds=(0.0, 0.01, 0.1))
    return metric.measure(samples(GIVEN, [ordered("Au", "Cu", 3.7), None]))


def test_heights_are_those_of_the_relaxed_energies(measured: Measurement) -> None:
    heights = [row["e_above_hull"] for row in measured.rows]
    assert heights[:2] == pytest.approx([0.02, -0.03], abs=1e-6)
    assert heights[2] - heights[1] == pytest.approx(measured.rows[2]["energy"] - measured.rows[1]["energy"])
    assert heights[3:] == [None] * 4
    values = measured.values
    assert values["avg_e_above_hull"] == pytest.approx(sum(heights[:3]) / 3)
    assert values["median_e_above_hull"] == sorted(heights[:3])[1]


def test_failed_and_unsupported_candidates_stay_in_every_denominator(measured: Measurement) -> None:
    expected = {
        "n_failed": 3,
        "n_unsupported": 1,
        "stable_0meV": 2 / 7,
        "stable_10meV": 2 / 7,
        "stable_100meV": 3 / 7,
        "unique": 3 / 7,
        "novel": 3 / 7,
        "sun_0meV": 1 / 7,
        "sun_10meV": 1 / 7,
        "sun_100meV": 1 / 7,
    }
    assert {name: measured.values[name] for name in expected} == pytest.approx(expected)
    assert list(measured.values) == [
        *("rmsd", "rmsd_mattergen", "energy_drop", "n_failed", "n_unconverged", "n_unsupported"),
        *("avg_e_above_hull", "median_e_above_hull", "stable_0meV", "stable_10meV", "stable_100meV"),
        *("unique", "novel", "sun_0meV", "sun_10meV", "sun_100meV"),
    ]


def test_every_candidate_has_a_row_and_a_reason(measured: Measurement) -> None:
    assert [row["reason"] for row in measured.rows] == [
        *("", "", "", "the potential failed: No EMT-potential for Fe", "the hull lacks one of its elements"),
        *("never built", "coordinates not finite"),
    ]
    assert [row["unique"] for row in measured.rows] == [True, True, False, None, True, None, None]
    assert [row["novel"] for row in measured.rows] == [False, True, True, None, True, None, None]
    assert [row["stable_10meV"] for row in measured.rows] == [False, True, True, False, False, False, False]
    assert [row["formula"] for row in measured.rows][:5] == ["Cu3Au", "CuAu3", "CuAu3", "Fe", "Cu3Pt"]
    moved = measured.rows[0]
    assert moved["steps"] == 3
    assert moved["converged"] is False
    assert 0 < moved["rmsd"] < 0.1


def test_the_definition_says_what_is_behind_the_numbers(measured: Measurement) -> None:
    definition: Any = measured.definition
    assert definition["potential"] == {"label": "EMT", **EMT().identity}
    assert definition["relaxation"]["max_steps"] == 3
    assert definition["hull"]["entries"] == 3
    assert definition["known"] == {"names": "the reference of the samples", "structures": 1}
    assert sum(definition["counts"]["failures"].values()) == 4
    assert json.loads(json.dumps(definition)) == definition
    assert any("missing phases" in note for note in measured.notes)
    assert any("1 of the relaxed structures have no energy above hull" in note for note in measured.notes)
    assert any("did not converge" in note for note in measured.notes)


def test_a_threshold_includes_its_edge(tmp_path: Path) -> None:
    (result,) = relaxed([fcc("Cu", 3.6)], EMT(), QUICK)
    hull = own(tmp_path / "e.json", {"Cu": result.energy - 0.1})
    found = Stability(potential=EMT(), relaxation=QUICK, hull=(hull,)).measure(samples([fcc("Cu", 3.6)]))
    assert found.values["stable_100meV"] == 1
    assert found.values["stable_0meV"] == 0


def test_without_a_hull_nothing_is_called_stable() -> None:
    found = Stability(potential=EMT(), relaxation=QUICK).measure(samples(GIVEN))
    assert not [name for name in found.values if "stable" in name or "sun" in name or "hull" in name]
    assert found.values["n_failed"] == 3
    assert found.values["unique"] == 3 / 7
    assert found.values["novel"] is None, "compared with nothing"
    assert "No hull is given: no stability is computed." in found.notes


def test_without_a_potential_nothing_is_relaxed() -> None:
    found = Stability().measure(samples(GIVEN, [fcc("Fe", 3.6) * (2, 1, 1)]))
    assert found.values == {"unique": 4 / 7, "novel": 4 / 7}
    assert [row["energy"] for row in found.rows] == [None] * 7


def test_oxidation_states_make_no_new_material() -> None:
    plain, charged = ordered("O", "Cu", 3.8), ordered("O", "Cu", 3.8)
    charged.add_oxidation_state_by_element({"O": -2, "Cu": 1})
    found = Stability().measure(samples([charged, plain], [plain]))
    assert found.values == {"unique": 0.5, "novel": 0.0}


def test_known_structures_are_read_from_files(tmp_path: Path) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, structure in zip(paths, (ordered("Cu", "Au", 4.0), fcc("Fe", 3.5)), strict=True):
        path.write_text(json.dumps([structure.as_dict()]))
    found = Stability(known=tuple(map(str, paths))).measure(samples(GIVEN, [ordered("Au", "Cu", 3.7)]))
    assert [row["novel"] for row in found.rows] == [True, False, False, False, True, None, None]
    known: Any = found.definition["known"]
    assert known == {"names": [str(path) for path in paths], "structures": 2}


def test_uncorrected_energies_are_corrected_where_the_hull_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if emt.v1 were a potential of raw PBE energies: CuO gets MP2020's -0.687 eV per oxygen."""
    monkeypatch.setattr(EMT, "scale", "uncorrected")
    oxide = ordered("O", "Cu", 3.8)
    metric = {
        scheme: Stability(
            potential=EMT(),
            relaxation=Relaxation(max_steps=0),
            hull=(written(tmp_path / "e.json", {"Cu": 0.0, "O": 0.0}),),
            corrections=scheme,
        )
        for scheme in ("none", "mp2020")
    }
    plain, corrected = (of_scheme.measure(samples([oxide])).rows[0] for of_scheme in metric.values())
    assert corrected["energy"] - plain["energy"] == pytest.approx(-0.687 / 4)
    assert corrected["e_above_hull"] == pytest.approx(corrected["energy"])


def test_an_energy_without_a_correction_is_unsupported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(structure: Structure) -> float:
        raise ValueError(structure)

    monkeypatch.setattr(EMT, "scale", "uncorrected")
    monkeypatch.setattr("kldm.metrics.stability.mp2020", refused)
    hull = written(tmp_path / "e.json", {"Cu": 0.0})
    metric = Stability(potential=EMT(), relaxation=QUICK, hull=(hull,), corrections="mp2020")
    found = metric.measure(samples([fcc("Cu", 3.6)]))
    assert (found.values["n_failed"], found.values["n_unsupported"], found.values["stable_100meV"]) == (0, 1, 0)
    assert found.rows[0]["reason"] == "its energy cannot be corrected"
    assert found.rows[0]["energy"] is None


def test_disordered_structures_have_failed() -> None:
    alloy = fcc("Cu", 3.7)
    alloy.replace_species({"Cu": {"Cu": 0.5, "Au": 0.5}})
    found = Stability(potential=EMT(), relaxation=QUICK).measure(samples([alloy, fcc("Cu", 3.6)], [alloy]))
    assert [row["reason"] for row in found.rows] == ["it is disordered", ""]
    assert Stability().measure(samples([alloy], [alloy])).values == {"unique": 0.0, "novel": None}


def test_mistakes_are_told_before_anything_is_relaxed(tmp_path: Path) -> None:
    entries = own(tmp_path / "e.json", {"Cu": 0.0})
    with pytest.raises(KldmError, match="a hull is of no use without energies"):
        Stability(hull=(entries,))
    with pytest.raises(KldmError, match="give the hull too"):
        Stability(potential=EMT(), corrections="none")
    for bad in ({"workers": 0}, {"time_limit": 0.0}, {"thresholds": (math.nan,)}):
        with pytest.raises(KldmError):
            Stability(**bad)
    with pytest.raises(KldmError, match=r"absent\.json: cannot be read"):
        Stability(potential=EMT(), hull=(tmp_path / "absent.json",)).prepare()
    foreign = written(tmp_path / "f.json", {"Cu": 0.0}, parameters={"potential": {"name": "other.v1"}})
    with pytest.raises(KldmError, match="relax the reference with the same potential"):
        Stability(potential=EMT(), hull=(foreign,)).prepare()
    with pytest.raises(KldmError, match="reference mp_20/trian: neither a file nor DATASET/SPLIT"):
        Stability(known=("mp_20/trian",)).prepare()
    with pytest.raises(KldmError, match="reference mp_21/train"):
        Stability(known=("mp_21/train",)).prepare()
    Stability(potential=EMT(), hull=(entries,)).prepare()
