"""The Materials Project's corrections of energies, applied to energies that a potential predicts."""

import warnings
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility


def mp2020(structure: "Structure") -> float:
    """The correction of a raw PBE(+U) energy, in eV per cell (Wang et al., Sci. Rep. 2021; MatterGen's pipeline).

    The energy is taken for one of VASP with the settings of ``MPRelaxSet``, which has Hubbard's U for some elements.
    Anions (oxides, peroxides ...) are told apart by the distances in the structure.

    Raises:
        ValueError: the scheme has no correction for the structure.
    """
    from pymatgen.entries.computed_entries import ComputedStructureEntry
    from pymatgen.io.vasp.sets import MPRelaxSet

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that oxidation states are guessed
        inputs = MPRelaxSet(structure)
        plus_u = bool(inputs.incar.get("LDAU"))
        # the values of U are in the order of the POSCAR, not of the structure
        values = dict(zip(inputs.poscar.site_symbols, inputs.incar["LDAUU"], strict=True)) if plus_u else {}
        parameters = {"run_type": "GGA+U" if plus_u else "GGA", "is_hubbard": plus_u, "hubbards": values}
        entry = ComputedStructureEntry(structure, 0.0, parameters=parameters)
        if _scheme().process_entry(entry, inplace=True) is None:
            raise ValueError("MP2020 has no correction for the structure")
    return float(entry.correction)


@cache
def _scheme() -> "MaterialsProject2020Compatibility":
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility

    return MaterialsProject2020Compatibility(check_potcar=False)
