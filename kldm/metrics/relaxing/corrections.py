"""The corrections that energies of the Materials Project carry, for energies that a potential predicts."""

import warnings
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility


def mp2020(structure: "Structure") -> float:
    """eV per cell to add to a raw PBE(+U) energy (Wang et al., Sci. Rep. 2021; MatterGen's pipeline).

    The energy counts as one of VASP with the settings of ``MPRelaxSet``: with Hubbard's U where those have it, and
    anions (oxides, peroxides ...) told apart by the distances in the structure.

    Raises:
        ValueError: the scheme has no correction for the structure.
    """
    from pymatgen.entries.computed_entries import ComputedStructureEntry
    from pymatgen.io.vasp.sets import MPRelaxSet

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on oxidation states that are guessed
        inputs = MPRelaxSet(structure)
        plus_u = bool(inputs.incar.get("LDAU"))
        # in the order of its own POSCAR, not of the structure
        values = dict(zip(inputs.poscar.site_symbols, inputs.incar["LDAUU"], strict=True)) if plus_u else {}
        parameters = {"run_type": "GGA+U" if plus_u else "GGA", "is_hubbard": plus_u, "hubbards": values}
        entry = ComputedStructureEntry(structure, 0.0, parameters=parameters)
        if _scheme().process_entry(entry, inplace=True) is None:
            raise ValueError("MP2020 has no correction for it")
    return float(entry.correction)


@cache
def _scheme() -> "MaterialsProject2020Compatibility":
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility

    return MaterialsProject2020Compatibility(check_potcar=False)
