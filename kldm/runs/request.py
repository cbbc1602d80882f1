"""What ``kldm sample`` is asked for, and the targets that a model gets for it."""

import re
from collections.abc import Mapping, Sequence
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs
from attrs.validators import optional

from kldm.data.convert import from_structures
from kldm.data.formulas import cells, number_range
from kldm.errors import KldmError, nearest
from kldm.reading import read_file
from kldm.runs.experiment import Experiment, takes_compositions
from kldm.runs.splits import drawn_rows
from kldm.sampling.generation import MOST_REQUESTS
from kldm.sampling.targets import (
    KnownPart,
    Targets,
    compositions,
    de_novo,
    drawn_sizes,
    given_species,
    with_properties,
)
from kldm.validators import at_least, within

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

KEPT = ("cell", "positions", "species")


@attrs.frozen(kw_only=True)
class SamplingRequest:
    """Which crystals are wanted.

    Attributes:
        formulas: formulas, each the exact content of one cell; with ``units`` they are reduced first.
        units: number of formula units per cell, ``N`` or ``N-M``.
        split: a split of the model's data set, whose compositions are wanted.
        limit: largest number of compositions taken from the split.
        elements: chemical system: element symbols separated by commas; no other element may appear.
        contains: a formula whose atoms are in every cell; the other atoms are generated.
        template: file of a crystal, of which the parts named in ``keep`` are kept.
        keep: any of ``cell``, ``positions``, ``species``.
        keep_atoms: atoms of the template to keep, counted from 1, such as ``1-4,7``; all by default.
        atoms: number of atoms in a cell: ``empirical``, ``8`` or ``4-20``.
        count: structures per composition, or in all where no compositions are given.
        seed: seed of all draws.
        properties: values that the crystals shall have, by the names of the columns that the model conditions on.
        select: how one of the structures of a composition is selected, see ``kldm.metrics.matching.selection``; none
            is by default.
    """

    formulas: tuple[str, ...] = ()
    units: str | None = None
    split: str | None = None
    limit: int | None = attrs.field(default=None, validator=optional(at_least(1)))
    elements: str | None = None
    contains: str | None = None
    template: Path | None = None
    keep: tuple[str, ...] = KEPT
    keep_atoms: str | None = None
    atoms: str | None = None
    count: int = attrs.field(default=1, validator=within(1, MOST_REQUESTS))
    seed: int = 0
    properties: Mapping[str, float] = attrs.field(factory=dict)
    select: Literal["consensus"] | None = None

    def __attrs_post_init__(self) -> None:
        sources = (
            ("--formula", bool(self.formulas)),
            ("--split", bool(self.split)),
            ("--contains", bool(self.contains)),
            ("--template", self.template is not None),
        )
        named = [name for name, given in sources if given]
        if len(named) > 1:
            raise KldmError(f"{' and '.join(named)} exclude each other")
        needs = {"--z": (self.units, "--formula"), "--keep-atoms": (self.keep_atoms, "--template")}
        for option, (value, other) in needs.items():
            if value and other not in named:
                raise KldmError(f"{option} needs {other}")
        if self.select and self.count < 2:
            remedy = "ask for more, e.g. --candidates 10"
            raise KldmError("there is one structure per composition to select from", place="--select", remedy=remedy)
        if self.atoms and (self.formulas or self.split):
            raise KldmError("--atoms has no meaning where compositions are given", remedy="leave it out")

    def as_json(self) -> dict[str, Any]:
        """The request for a report; what was not asked for is left out."""
        given = {name: value for name, value in attrs.asdict(self).items() if value not in (None, (), {})}
        return {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}

    def targets(self, experiment: Experiment) -> tuple[Targets, int]:
        """The targets, and the number of candidates for each.

        Raises:
            KldmError: the request is unclear or contradicts itself, or the model cannot fulfil it.
        """
        known = experiment.model.columns
        for name in self.properties:
            if name not in known:
                remedy = nearest(name, known) or (f"it takes {', '.join(known)}" if known else "it takes none")
                raise KldmError(f"the model takes no property {name!r}", place="--property", remedy=remedy)
        targets, count = self._crystals(experiment)
        return attrs.evolve(targets, store=with_properties(targets.store, self.properties)), count

    def _crystals(self, experiment: Experiment) -> tuple[Targets, int]:
        """The targets without the requested properties, and the number of candidates for each."""
        compositional = takes_compositions(experiment.model)
        elements = None if self.elements is None else element_numbers(self.elements)
        if self.formulas:
            wanted = cells(self.formulas, self.units)
            targets = given_species(compositions([cell.numbers for cell in wanted], [cell.name for cell in wanted]))
            return _within(targets, elements), self.count
        if self.split or (compositional and not self.template):
            if self.contains or self.elements or self.atoms:
                raise KldmError(
                    "the model takes its atom types from the composition", remedy="give whole formulas with --formula"
                )
            store = experiment.data.load(self.split or "test")
            rows = drawn_rows(len(store), self.limit, self.seed)
            targets = attrs.evolve(given_species(store.subset(rows)), numbers=tuple(rows))
            return _within(targets, elements), self.count
        if self.select:
            remedy = "name compositions with --formula or --split, or leave it out"
            raise KldmError("selects among the structures of one composition", place="--select", remedy=remedy)
        part, template_atoms = self._part()
        atoms = self.atoms or template_atoms or experiment.evaluation.atoms
        least = max(1, len(part.species)) if part else 1
        try:
            sizes = drawn_sizes(atoms, experiment.evaluation.histogram, self.count, self.seed, least)
        except KldmError as error:  # it names the key of the recipe
            if self.atoms is None:
                raise
            remedy = error.remedy or f"ask for {least} atoms or more"
            raise KldmError(error.problem, place=f"--atoms {self.atoms}", remedy=remedy) from None
        targets = de_novo(sizes, part, elements)
        species = targets.constraints.species
        if compositional and (species is None or not bool(species.all())):
            raise KldmError(
                "the model takes its atom types from the composition, and not all atoms' types are known",
                remedy="keep the species of all atoms of the template, and no more atoms than it has",
            )
        return targets, 1

    def _part(self) -> tuple[KnownPart | None, int | None]:
        """The known part of every crystal, and the number of atoms of the template, if there is one."""
        if self.contains:
            (cell,) = cells([self.contains], option="--contains")
            return KnownPart(cell.numbers), None
        if self.template is None:
            return None, None
        for name in self.keep:
            if name not in KEPT:
                raise KldmError(f"cannot keep {name!r}", place="--keep", remedy=nearest(name, KEPT))
        store = from_structures([_structure(self.template)], [str(self.template)])
        atoms = _atoms(self.keep_atoms, store.sizes[0]) if {"positions", "species"} & set(self.keep) else []
        part = KnownPart(
            species=tuple(store.species[atoms].tolist()),
            fractional=store.fractional[atoms] if "positions" in self.keep else None,
            lattice=store.lattice[0] if "cell" in self.keep else None,
            keeps_species="species" in self.keep,
        )
        return part, store.sizes[0]


def property_values(texts: Sequence[str]) -> dict[str, float]:
    """Numbers by name from texts ``NAME=VALUE``.

    Raises:
        KldmError: a text does not have that form, or a name is given twice.
    """
    values: dict[str, float] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            number = nan
        if not name or not isfinite(number):
            remedy = "write it like formation_energy_per_atom=-1.5"
            raise KldmError(f"wants NAME=VALUE with a number, got {text!r}", place="--property", remedy=remedy)
        if name in values:
            raise KldmError(f"{name} is given twice", place="--property", remedy="give every property once")
        values[name] = number
    return values


def element_numbers(symbols: str) -> tuple[int, ...]:
    """The sorted atomic numbers of element symbols separated by commas, each once.

    Raises:
        KldmError: no element is named, or a symbol is unknown or beyond atomic number 100.
    """
    from pymatgen.core.periodic_table import Element

    numbers = set()
    for symbol in filter(None, re.split(r"[,\s-]+", symbols)):
        if not Element.is_valid_symbol(symbol):
            known = [element.symbol for element in Element]
            raise KldmError(f"no element is called {symbol!r}", place="--elements", remedy=nearest(symbol, known))
        if Element(symbol).Z > 100:
            raise KldmError(f"{symbol} lies beyond atomic number 100", place="--elements")
        numbers.add(Element(symbol).Z)
    if not numbers:
        raise KldmError("names no element", place="--elements", remedy="write it like Li,O,Mn")
    return tuple(sorted(numbers))


def _within(targets: Targets, elements: tuple[int, ...] | None) -> Targets:
    return attrs.evolve(targets, constraints=attrs.evolve(targets.constraints, elements=elements))


def _atoms(text: str | None, count: int) -> list[int]:
    """Rows of ``1-4,7`` (from 1), or all."""
    if text is None:
        return list(range(count))
    rows: set[int] = set()
    for part in text.split(","):
        numbers = number_range(part)
        if not numbers or numbers[-1] > count:
            problem = f"the template has atoms 1 to {count}, not {part!r}"
            raise KldmError(problem, place=f"--keep-atoms {text}", remedy="write it like 1-4,7")
        rows |= {number - 1 for number in numbers}
    return sorted(rows)


def _structure(path: Path) -> "Structure":
    """The first structure of a file, which is read as samples are."""
    if not path.is_file():
        raise KldmError("no such file", place=str(path))
    first = read_file(path).candidates[0]
    if first.structure is None:
        remedy = "give a CIF or POSCAR file"
        raise KldmError(f"not a structure that can be read ({first.reason})", place=str(path), remedy=remedy)
    return first.structure
