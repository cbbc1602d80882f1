"""A reference that was trained on is found, whatever cell it is written in."""

import numpy as np
import torch
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from kldm.data.convert import from_structures
from kldm.evaluation.overlap import of_store, of_structures, overlap, overlap_note
from tests.small import random_store

SALT = Structure(Lattice.from_parameters(4, 4.1, 4.2, 80, 85, 88), ["Na", "Cl"], np.array([[0, 0, 0], [0.5, 0.5, 0.5]]))


def test_a_copy_in_another_cell_with_other_order_of_atoms_is_a_twin() -> None:
    other = SALT.copy()
    other.make_supercell([[1, 1, 0], [0, 1, 0], [0, 0, 1]])
    other = Structure.from_sites(list(other)[::-1])
    assert overlap(of_structures([other]), of_structures([SALT])) == 1


def test_another_composition_or_cell_is_none() -> None:
    wider = SALT.copy()
    wider.apply_strain(0.01)
    changed = SALT.copy()
    changed.replace_species({"Na": "K"})
    assert overlap(of_structures([wider, changed, None]), of_structures([SALT, None])) == 0


def test_flat_cells_are_like_no_other() -> None:
    flat = Structure(Lattice([[4, 0, 0], [0, 4, 0], [4, 4, 0]]), ["Na"], np.zeros((1, 3)))
    assert overlap(of_structures([flat]), of_structures([flat])) == 0


def test_a_store_and_its_structures_agree() -> None:
    store = random_store((2, 3, 2, 4))
    assert overlap(of_store(store.subset([1, 3])), of_store(store)) == 2
    assert overlap(of_store(random_store((2, 3), seed=9)), of_store(store)) == 0
    reduced = from_structures([SALT.get_reduced_structure("niggli")])
    assert overlap(of_store(reduced), of_structures([SALT])) == 1
    assert torch.equal(reduced.species.sort().values, torch.tensor([11, 17]))


def test_the_note_counts() -> None:
    assert overlap_note(of_structures([SALT]), of_structures([]), "train") == ()
    (note,) = overlap_note(of_structures([SALT, SALT]), of_structures([SALT]), "mp_20/train")
    assert note.startswith("2 reference structures have")
    assert "mp_20/train" in note
