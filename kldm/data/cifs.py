"""CIF texts to structures. Nothing is guessed: what contradicts itself, or does not say what it means, is refused.

pymatgen splits the text into data items. The sites are made here, since its ``CifParser`` merges atoms by their
distance, leaves out what it does not understand and takes P1 where the symmetry is missing, with warnings at most
(pymatgen#3963, #2175, #1415, #488).
"""

import ast
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import gcd, inf
from typing import TYPE_CHECKING

import attrs
import numpy as np

from kldm.data.arrays import too_close
from kldm.data.structures import (
    FARTHEST,
    MOST_ATOMS,
    ImpossibleError,
    StructureError,
    atomic_number,
    cell_matrix,
    numbers_of,
    plain_structure,
    structure_of,
)
from kldm.data.symmetry import LISTED, Operations, operations
from kldm.runtime.numbers import Float

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

Items = Mapping[str, str | list[str]]
"""The data items of a block: a text, or the list of a column of a loop. Names are in lower case, dots underscores."""

SAME = 1e-4
"""Copies of a site that differ by less in every fractional coordinate are one, however many digits the file has."""

ROUNDED = 1e-4
"""Coordinates of training data within this part of 1/3 or 2/3 are these, as pymatgen has it."""

LONGEST_DICT = 2**22
"""Characters; reading a dict takes a hundred times as many bytes."""

LONGEST_LINE = 4096
"""Characters of a line outside of text fields, twice as many as CIF allows; quotes take the square of it to match."""

LONGEST_FORMULA = 1000
"""Characters; what is longer is no formula."""

_MODULATED = ("_cell_modulation", "_cell_wave_vector", "_cell_subsystem", "_space_group_ssg", "_atom_site_fourier")

_HEADER = re.compile(r"[ \t]*data_(\S*)", re.IGNORECASE)
_ATOMS = re.compile(r"^[ \t]*_atom_site[._]", re.IGNORECASE | re.MULTILINE)
_WORDS = re.compile(r"^([ \t]*)(loop_|data_)", re.IGNORECASE | re.MULTILINE)
_ONCE = re.compile(r"^[ \t]*(_cell[._]length_a|_atom_site[._]fract_x)\b", re.IGNORECASE | re.MULTILINE)
_NUMBER = re.compile(
    r"([+-]?(?:\d+(?:\.(\d*))?|\.(\d+))(?:e[+-]?\d+)?|[+-]?(?:nan|inf))(?:\(\d+\)?)?", re.IGNORECASE | re.ASCII
)
_COUNTED = re.compile(r"(?<=[A-Za-z])[\d.]+$", re.ASCII)
_LABEL = re.compile(r"[A-Za-z]{1,2}(?![A-Za-z])", re.ASCII)


@attrs.frozen
class Block:
    """A data block with atoms: its name (what follows ``data_``) and its text."""

    name: str
    text: str


@attrs.frozen(eq=False)
class _Sites:
    """The atoms that a block lists: atomic numbers, and what it says of each."""

    numbers: list[int]
    coordinates: list[list[str]]
    multiplicities: list[int | None]


def blocks(text: str) -> list[Block]:
    """The data blocks with atoms of a CIF; those without, such as a journal's ``data_global``, are passed over.

    Raises:
        StructureError: there are none, or atoms come before the first block, or a text field does not end.
    """
    found: list[tuple[str, list[str]]] = []
    outside: list[str] = []
    in_field = False
    for line in text.replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if line.startswith(";"):
            in_field = not in_field
        elif not in_field and len(line) > LONGEST_LINE:
            raise StructureError(f"a line is longer than {LONGEST_LINE} characters")
        elif not in_field and (match := _HEADER.match(line)):
            found.append((match[1], []))
        (found[-1][1] if found else outside).append(line)
    if in_field:
        raise StructureError("a text field, which begins with a semicolon, does not end")
    if not found:
        raise StructureError("it is no CIF: there is no line that begins with data_" if text.strip() else "it is empty")
    if _holds_atoms(outside):
        raise StructureError("it lists atoms before its first line that begins with data_")
    result = [Block(name, "\n".join(lines)) for name, lines in found if _holds_atoms(lines)]
    if not result:
        raise StructureError("it lists no atoms")
    return result


def read_text(text: str, *, rounded: bool = False) -> "Structure":
    """The structure of a CIF with one block of atoms, or of pymatgen's dict as JSON or as Python prints it.

    The sites of a CIF are ordered by electronegativity. Copies of a site by symmetry are merged as far as the digits of
    the file cannot tell them apart. Atoms that the file lists are never merged.

    Args:
        text: the CIF.
        rounded: whether coordinates near 1/3 and 2/3 of a CIF are taken for these, as in the training data.

    Raises:
        StructureError: it is no CIF, has several structures, contradicts itself or leaves open what it means, or it is
            disordered or no crystal.
    """
    if text.lstrip().startswith(("{", '"{')):
        return _of_dict(text)
    found = blocks(text)
    if len(found) > 1:
        raise StructureError(f"it holds {len(found)} structures where one is expected")
    items = _items(found[0].text)
    if any(key.startswith(_MODULATED) for key in items):
        raise StructureError("it is a modulated structure")
    sites = _sites(items)
    try:
        return _crystal(items, sites, rounded)
    except StructureError as error:
        error.species = _species(items, sites)
        raise


def _of_dict(text: str) -> "Structure":
    if len(text) > LONGEST_DICT:
        raise StructureError(f"it is a dict of more than {LONGEST_DICT} characters")
    try:
        value = json.loads(text)
        value = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise StructureError("it is a dict that is neither JSON nor made of Python's plain values") from None
    try:
        return structure_of(value)
    except StructureError as error:
        error.species = numbers_of(value)
        raise


def _crystal(items: Items, sites: _Sites, rounded: bool) -> "Structure":
    matrix = _cell(items)
    positions = np.array([[_number(text, "a coordinate") for text in row] for row in sites.coordinates])
    if not (np.abs(positions) <= FARTHEST).all():
        return plain_structure(matrix, sites.numbers, positions)  # which refuses it
    if rounded:
        for third in (1 / 3, 2 / 3):
            positions = np.where(np.abs(positions / third - 1) <= ROUNDED, third, positions)
    symmetry, complete = operations(items, matrix)
    orbits = _orbits(sites, positions, symmetry, matrix)
    numbers = [number for number, orbit in zip(sites.numbers, orbits, strict=True) for _ in orbit]
    confirmed = _check_formula(items, Counter(numbers))
    if not complete and not confirmed:
        raise StructureError("it names a space group whose symmetry operations it does not list in full")
    positions = np.concatenate(orbits)
    return _sorted(matrix, numbers, positions)


def _sorted(matrix: Float, numbers: Sequence[int], positions: Float) -> "Structure":
    """The structure with its sites in the order of pymatgen's reader, by electronegativity. Where an element has none,
    this depends on the order before, which is that of compositions."""
    from pymatgen.core.composition import Composition
    from pymatgen.core.periodic_table import Element

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of elements without an electronegativity
        compositions = {number: Composition({Element.from_Z(number): 1}) for number in set(numbers)}
        order = sorted(range(len(numbers)), key=lambda site: compositions[numbers[site]])
        return plain_structure(matrix, [numbers[site] for site in order], positions[order]).get_sorted_structure()


def _species(items: Items, sites: _Sites) -> tuple[int, ...]:
    """The atomic numbers of the cell, if the file tells them without its symmetry operations; else none."""
    if all(sites.multiplicities):
        pairs = zip(sites.numbers, sites.multiplicities, strict=True)
        return tuple(number for number, count in pairs for _ in range(count or 0))
    return tuple(sites.numbers) if max(len(_column(items, name)) for name in LISTED) <= 1 else ()


def _holds_atoms(lines: Sequence[str]) -> bool:
    return _ATOMS.search("\n".join(_outside_fields(lines))) is not None


def _outside_fields(lines: Sequence[str]) -> Iterator[str]:
    in_field = False
    for line in lines:
        if line.startswith(";"):
            in_field = not in_field
        elif not in_field:
            yield line


def _items(text: str) -> Items:
    """The data items of a block. Letters beyond ASCII become question marks: a minus sign of theirs must stay."""
    from pymatgen.io.cif import CifBlock

    names = _ONCE.findall("\n".join(_outside_fields(text.split("\n"))))
    if len(names) > len({name.lower().replace(".", "_") for name in names}):
        raise StructureError("it lists a cell or atoms twice in one data block")
    ascii_text = _WORDS.sub(lambda match: match[0].lower(), text).encode("ascii", "replace").decode("ascii")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            data = CifBlock.from_str(ascii_text).data
        except (ValueError, ZeroDivisionError):
            raise StructureError("the values of a loop do not fill its columns") from None
        except Exception as error:  # the parser may raise anything; the failure is this CIF's alone
            raise StructureError(f"it is no CIF that can be parsed ({type(error).__name__})") from None
    if caught:
        raise StructureError(" ".join(str(caught[0].message).split())[:120])
    return {key.lower().replace(".", "_"): value for key, value in data.items()}


def _cell(items: Items) -> Float:
    names = [
        f"_cell_{what}" for what in ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    ]
    return cell_matrix([_number(_only(items, name), name) for name in names])


def _sites(items: Items) -> _Sites:
    """The atoms of the loop of sites, dummies left out."""
    columns = [_column(items, f"_atom_site_fract_{axis}") for axis in "xyz"]
    count = len(columns[0])
    if not count or any(len(column) != count for column in columns):
        raise StructureError("there are no fractional coordinates (_atom_site_fract_x, _y and _z)")

    def optional(*names: str) -> list[str]:
        found = next((column for name in names if (column := _column(items, name))), [])
        if found and len(found) != count:
            raise StructureError("the columns of the atoms are not of one length")
        return found or [""] * count

    labels, symbols = optional("_atom_site_label"), optional("_atom_site_type_symbol")
    occupancies, flags = optional("_atom_site_occupancy"), optional("_atom_site_calc_flag")
    hydrogens, groups = optional("_atom_site_attached_hydrogens"), optional("_atom_site_disorder_group")
    multiplicities = optional("_atom_site_symmetry_multiplicity", "_atom_site_site_symmetry_multiplicity")
    kept = [site for site in range(count) if flags[site].lower() != "dum" and _occupied(occupancies[site])]
    if not kept:
        raise StructureError("it lists no atoms")
    if len({groups[site] for site in kept} - {"", ".", "?", "0"}) > 1:
        raise ImpossibleError("it is disordered")
    if any(hydrogens[site] not in ("", ".", "?", "0") for site in kept):
        raise StructureError("it has hydrogens without positions (_atom_site_attached_hydrogens)")
    return _Sites(
        [_element(symbols[site], labels[site], items) for site in kept],
        [[column[site] for column in columns] for site in kept],
        [_count(multiplicities[site]) for site in kept],
    )


def _occupied(text: str) -> bool:
    """Whether there is an atom: the occupancy is 1, also if it is left to its default, or 0."""
    occupancy = 1.0 if text in ("", ".") else _number(text, "_atom_site_occupancy")
    if occupancy in (0, 1):
        return bool(occupancy)
    if 0 < occupancy < 1:
        raise ImpossibleError("it is disordered")
    raise StructureError("an occupancy is not between 0 and 1")


def _orbits(sites: _Sites, positions: Float, symmetry: Operations, matrix: Float) -> list[Float]:
    """The positions of each site's copies, in [0, 1): [copies, 3] for each site.

    Coordinates of d digits are off by at most 0.5 * 10^-d, and rows of rotations have at most two entries: copies that
    are one point on paper differ by at most 1.5 * 10^-d.
    """
    if len(symmetry) == 1:
        if any(multiplicity not in (None, 1) for multiplicity in sites.multiplicities):
            raise StructureError("it gives atoms a multiplicity, but lists no symmetry operations that copy them")
        images = positions @ symmetry.rotations[0].T + symmetry.translations[0]
        return list((images - np.floor(images))[:, None])
    digits = max(_digits(text) for row in sites.coordinates for text in row)
    doubtful = 1.5 * 10.0**-digits * (1 + 1e-6) if digits else 0.0
    tolerance = max(min(doubtful, 0.015), SAME)  # one digit tells nothing
    result: list[Float] = []
    of_element: dict[int, Float] = {}
    atoms = 0
    for number, position in zip(sites.numbers, positions, strict=True):
        images = symmetry.rotations @ position + symmetry.translations
        orbit = _merged(images - np.floor(images), tolerance)
        atoms += len(orbit)
        if atoms > MOST_ATOMS:
            raise ImpossibleError(f"it has more than {MOST_ATOMS} atoms")
        if too_close(matrix, orbit) or _closest(orbit) < doubtful:
            raise StructureError(
                "copies of an atom by symmetry lie on top of each other: its coordinates have few digits"
            )
        others = of_element.get(number, np.empty((0, 3)))
        if (np.abs(_nearest(others - orbit[0])) < tolerance).all(1).any():
            raise StructureError("it lists an atom and a copy of it by symmetry")
        of_element[number] = np.concatenate([others, orbit])
        result.append(orbit)
    given = [(m, len(orbit)) for m, orbit in zip(sites.multiplicities, result, strict=True) if m is not None]
    as_order = all(m * copies == len(symmetry) for m, copies in given)  # SHELXL-97 wrote the order of the site symmetry
    if not as_order and any(m != copies for m, copies in given):
        raise StructureError("the multiplicity that it gives for an atom contradicts its symmetry operations")
    return result


def _merged(images: Float, tolerance: float) -> Float:
    """The distinct points among images of a site, each the mean of those that are one."""
    points = []
    while len(images):
        steps = _nearest(images - images[0])
        one = np.abs(steps).max(1) < tolerance
        point = images[0] + steps[one].mean(0)
        points.append(point - np.floor(point))
        images = images[~one]
    return np.array(points)


def _closest(points: Float) -> float:
    """The smallest distance of two points in fractional coordinates, by the largest of the three."""
    first, second = np.triu_indices(len(points), 1)
    return float(np.abs(_nearest(points[first] - points[second])).max(1).min(initial=inf))


def _nearest(steps: Float) -> Float:
    return steps - np.round(steps)


def _check_formula(items: Items, atoms: Counter[int]) -> bool:
    """Whether the formula and the number of its units confirm the atoms of the cell; False if they are not given.

    Programs write the formula of one unit or, with the number of reduced units in it, of the whole cell.

    Raises:
        StructureError: they contradict the atoms.
    """
    text = _only(items, "_chemical_formula_sum") or _only(items, "_chemical_formula_structural")
    formula = _formula(text)
    if not formula:
        return False
    ratios = [atoms[number] / formula[number] if number in atoms else 0.0 for number in formula]
    if set(atoms) != set(formula) or max(ratios) - min(ratios) > 0.01 or min(ratios) < 0.99:
        raise StructureError("its atoms contradict its chemical formula (_chemical_formula_sum)")
    wanted = _number(_only(items, "_cell_formula_units_z") or "0", "_cell_formula_units_Z")
    if not wanted:  # pymatgen counts molecules of N2 and units of Na2O2, so that there are none in N or NaO
        return False
    of_cell = all(abs(count / wanted - round(count / wanted)) < 1e-6 for count in formula.values())
    of_cell = of_cell or gcd(*map(round, formula.values())) // 2 == wanted
    if abs(ratios[0] - wanted) > 0.01 and not (of_cell and abs(ratios[0] - 1) < 0.01):
        raise StructureError("its atoms contradict the number of its formula units (_cell_formula_units_Z)")
    return True


def _formula(text: str) -> dict[int, float]:
    """Atoms by atomic number; empty if it is no formula that can be understood."""
    from pymatgen.core.composition import Composition

    if len(text) > LONGEST_FORMULA:
        return {}
    try:
        found: dict[int, float] = {}
        for species, count in Composition(text).items():
            found[int(species.Z)] = found.get(int(species.Z), 0.0) + count
    except Exception:  # prose, which says nothing of the atoms
        return {}
    return found


def _only(items: Items, name: str) -> str:
    """The text of an item; empty if it is missing, unknown or does not apply."""
    value = items.get(name, "")
    text = value if isinstance(value, str) else value[0] if len(value) == 1 else ""
    return "" if text.strip() in ("?", ".") else text.strip()


def _column(items: Items, name: str) -> list[str]:
    value = items.get(name, [])
    return [value] if isinstance(value, str) else value


def _number(text: str, name: str) -> float:
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise StructureError(f"{name} is {text[:20]!r}, which is no number" if text else f"there is no {name}")
    return float(match[1])


def _digits(text: str) -> int:
    match = _NUMBER.fullmatch(text.strip())
    return len((match[2] or match[3] or "") if match else "")


def _count(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 9 else None


def _element(symbol: str, label: str, items: Items) -> int:
    """The atomic number of an atom: of its type symbol or, without one, of the letters that its label begins with."""
    from pymatgen.core.periodic_table import Element

    if symbol not in ("", "?", "."):
        return atomic_number(_COUNTED.sub("", symbol))
    match = _LABEL.match(label)
    if match is None:
        raise StructureError(f"{label[:20]!r} is no element")
    number, letters = atomic_number(match[0]), match[0]
    two_capitals = len(letters) == 2 and letters.isupper() and Element.is_valid_symbol(letters[0])
    if two_capitals and not _only(items, "_chemical_formula_sum"):
        raise StructureError(f"the label {label[:20]!r} may mean {letters[0]} or {letters.capitalize()}")
    return number
