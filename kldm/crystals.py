"""Batches of crystals as flat tensors, without padding, stored edges or a Python object per crystal.

Letters used for shapes in the whole package: N atoms of a batch, B crystals of a batch, P unordered pairs of
atoms of one crystal, M crystals of a data set, C numbers of a channel.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor
from torch.autograd import Function

from kldm.errors import KldmError
from kldm.runtime.pieces import pieces
from kldm.runtime.rows import add_rows

_NARROW = 32  # up to this many numbers per atom, torch's segment means are faster on a CPU


class Bags(NamedTuple):
    """Which rows of a matrix are summed to each row of another.

    Attributes:
        rows: int32, the rows of the first bag, then those of the second, and so on.
        first: int32, one per bag, where in ``rows`` it begins.
        signs: float32, the sign of each of ``rows``, 1 or -1; None if all are 1.
    """

    rows: Tensor
    first: Tensor
    signs: Tensor | None


@attrs.frozen(slots=False, eq=False)
class Pairs:
    """All unordered pairs ``i < j`` of atoms that share a crystal, in lexicographic order.

    Each pair is two directed edges. The 2 P edges of a batch are all those from j to i, then all those from i to j.

    Attributes:
        i, j: int64 [P], atoms of the batch.
        degree: int64 [N], the number of other atoms in the crystal of each atom.
    """

    i: Tensor
    j: Tensor
    degree: Tensor

    @cached_property
    def by_receiver(self) -> Tensor:
        """int64 [2 P]: the edges sorted by receiver, ``degree`` of each."""
        return torch.cat([self.i, self.j]).argsort(stable=True)

    @cached_property
    def by_sender(self) -> Tensor:
        """int64 [2 P]: the edges sorted by sender."""
        return torch.cat([self.j, self.i]).argsort(stable=True)

    @cached_property
    def received(self) -> Bags:
        """The edges that each atom receives, N bags."""
        return self._edges(self.by_receiver)

    @cached_property
    def sent(self) -> Bags:
        """The edges that each atom sends, N bags."""
        return self._edges(self.by_sender)

    @cached_property
    def parts(self) -> Bags:
        """The four rows that every edge sums, 2 P bags, in a matrix of a receiver [N], a sender [N], an even [P] and an
        odd part [P], stacked: those of its ends and of its pair. The odd one is subtracted in the edges to j."""
        atoms, pairs = len(self.degree), len(self.i)
        even = torch.arange(2 * atoms, 2 * atoms + pairs, device=self.i.device)
        ends = ((self.i, self.j), (self.j, self.i))
        rows = [torch.stack([to, atoms + sender, even, pairs + even], 1) for to, sender in ends]
        signs = torch.ones(2, pairs, 4, device=self.i.device)
        signs[1, :, 3] = -1
        first = torch.arange(0, 8 * pairs, 4, device=self.i.device)
        return Bags(torch.cat(rows).flatten().int(), first.int(), signs.flatten())

    def _edges(self, order: Tensor) -> Bags:
        return Bags(order.int(), (self.degree.cumsum(0) - self.degree).int(), None)


@attrs.frozen(slots=False, eq=False)
class Layout:
    """Which atom belongs to which crystal.

    Attributes:
        num_atoms: int64 [B], on the device of the batch.
        sizes: the same numbers on the host, so that no size ever costs a device synchronisation.
    """

    num_atoms: Tensor
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, sizes: Sequence[int], device: torch.device | str = "cpu") -> "Layout":
        """The layout of crystals with these numbers of atoms (each at least 1)."""
        sizes = tuple(int(size) for size in sizes)
        if any(size < 1 for size in sizes):
            raise ValueError("every crystal needs at least one atom")
        return cls(_to_device(sizes, device), sizes)

    @property
    def device(self) -> torch.device:
        return self.num_atoms.device

    @cached_property
    def total(self) -> int:
        """N, the number of atoms in all."""
        return sum(self.sizes)

    def __len__(self) -> int:
        """B, the number of crystals."""
        return len(self.sizes)

    @cached_property
    def ptr(self) -> Tensor:
        """int64 [B + 1]: the atoms of crystal b are ``ptr[b]`` to ``ptr[b + 1]``."""
        return torch.nn.functional.pad(self.num_atoms.cumsum(0), (1, 0))

    @cached_property
    def owner(self) -> Tensor:
        """int64 [N]: the crystal of each atom."""
        crystals = torch.arange(len(self), device=self.device)
        return crystals.repeat_interleave(self.num_atoms, output_size=self.total)

    @cached_property
    def pairs(self) -> Pairs:
        """The pairs of all crystals, made on the device from nothing but the numbers of atoms."""
        last = self.ptr[1:][self.owner] - 1
        atom = torch.arange(self.total, device=self.device)
        partners = last - atom
        count = sum(size * (size - 1) // 2 for size in self.sizes)
        i = atom.repeat_interleave(partners, output_size=count)
        first = partners.cumsum(0) - partners
        j = torch.arange(count, device=self.device) - first[i] + i + 1
        return Pairs(i, j, self.per_atom(self.num_atoms) - 1)

    @cached_property
    def edge_index(self) -> Tensor:
        """int64 [2, E]: (source, target) of every directed edge without self-edges, as torch-geometric has it,
        sorted by target."""
        i, j = self.pairs.i, self.pairs.j
        source, target = torch.cat([i, j]), torch.cat([j, i])
        order = torch.argsort(target * self.total + source)
        return torch.stack([source[order], target[order]])

    def part(self, first: int, last: int) -> "Layout":
        """The layout of the crystals ``first`` to ``last - 1``."""
        return Layout(self.num_atoms[first:last], self.sizes[first:last])

    def parts(self, max_pairs: int) -> tuple["LayoutPart", ...]:
        """Consecutive parts of at most ``max_pairs`` ordered pairs, cached; a larger crystal is a part of its own."""
        if max_pairs not in self._parts:
            atoms = [0, *accumulate(self.sizes)]
            self._parts[max_pairs] = tuple(
                LayoutPart(slice(atoms[first], atoms[last]), slice(first, last), self.part(first, last))
                for first, last in pieces(self.sizes, (0, len(self)), max_pairs)
            )
        return self._parts[max_pairs]

    @cached_property
    def _parts(self) -> dict[int, tuple["LayoutPart", ...]]:
        return {}

    def per_atom(self, values: Tensor) -> Tensor:
        """[B, ...] to [N, ...]: each atom gets its crystal's value."""
        return values.index_select(0, self.owner)

    def columns(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Values per crystal, [B] each, as columns [N, 1] with one row per atom, in one gather."""
        return self.per_atom(torch.stack(values, -1)).unsqueeze(-1).unbind(1)

    def sum(self, values: Tensor) -> Tensor:
        """[N, ...] to [B, ...]: sum over the atoms of each crystal."""
        return add_rows(values, self.owner, len(self.num_atoms))

    def mean(self, values: Tensor) -> Tensor:
        """[N, ...] to [B, ...]: mean over the atoms of each crystal."""
        kind = values.device.type
        wide = kind == "cpu" and values.dim() == 2 and values.shape[1] > _NARROW
        if wide or kind == "mps":  # mps has no segment means
            return self._over_sizes(self.sum(values))
        result: Tensor = _SegmentMean.apply(values, self)  # type: ignore[no-untyped-call]
        return result

    def _over_sizes(self, values: Tensor) -> Tensor:
        """[B, ...]: values divided by the number of atoms of each crystal."""
        return values / self.num_atoms.to(values.dtype).view(-1, *[1] * (values.dim() - 1))

    def centred(self, values: Tensor) -> Tensor:
        """[N, ...] to [N, ...]: values minus their mean over the atoms of each crystal."""
        return values - self.per_atom(self.mean(values))

    def to(self, device: torch.device | str) -> "Layout":
        return Layout(self.num_atoms.to(device), self.sizes)


class LayoutPart(NamedTuple):
    """Consecutive crystals of a batch, and their atoms."""

    atoms: slice
    crystals: slice
    layout: Layout


class _SegmentMean(Function):
    """``Layout.mean`` in one kernel. Torch's own gradient of it cannot be differentiated again."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        # The order of additions is the same in every run. The offsets are right by construction; to check them would
        # make the host wait for the device.
        return torch.segment_reduce(values, "mean", offsets=layout.ptr, unsafe=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        layout: Layout = ctx.layout
        return layout.per_atom(layout._over_sizes(gradient)), None


@attrs.frozen(slots=False, eq=False)
class Crystals:
    """A batch of crystals. Changed with ``attrs.evolve``, never in place.

    Attributes:
        fractional: [N, 3] fractional coordinates in [0, 1).
        lattice: [B, 6] lengths a, b, c in angstrom, then angles alpha, beta, gamma in radians.
        species: int64 [N] atomic numbers, 1 to 100.
        layout: which atom belongs to which crystal.
        per_crystal: further columns by name, [B] or [B, ...], such as a property; what is not known is NaN.
        per_atom: further columns by name, [N] or [N, ...]. A name is in one of the two.

    Raises:
        KldmError: a column does not have one row per crystal or atom, or has the name of another.
    """

    fractional: Tensor
    lattice: Tensor
    species: Tensor
    layout: Layout
    per_crystal: Mapping[str, Tensor] = attrs.field(factory=dict)
    per_atom: Mapping[str, Tensor] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        _check_columns(self)

    @property
    def device(self) -> torch.device:
        return self.fractional.device

    def __len__(self) -> int:
        return len(self.layout)

    def to(self, device: torch.device | str) -> "Crystals":
        return Crystals(
            self.fractional.to(device),
            self.lattice.to(device),
            self.species.to(device),
            self.layout.to(device),
            _columns_to(self.per_crystal, device),
            _columns_to(self.per_atom, device),
        )


@attrs.frozen(slots=False, eq=False)
class CrystalStore:
    """A data set at rest: flat arrays for a whole split, a few megabytes, on any device.

    Attributes:
        fractional: [sum of atoms, 3] float32 in [0, 1).
        species: int64 [sum of atoms], atomic numbers.
        lattice: [M, 6] float32, angstrom and radians, as in ``Crystals``.
        sizes: the number of atoms of each crystal, M of them, on the host.
        ids: M names, unique or not, as the source gives them.
        per_crystal, per_atom: further columns by name, as in ``Crystals``.

    Raises:
        KldmError: a column does not have one row per crystal or atom, or has the name of another.
    """

    fractional: Tensor
    species: Tensor
    lattice: Tensor
    sizes: tuple[int, ...]
    ids: tuple[str, ...]
    per_crystal: Mapping[str, Tensor] = attrs.field(factory=dict)
    per_atom: Mapping[str, Tensor] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        _check_columns(self)

    @classmethod
    def of(cls, crystals: Crystals, ids: Sequence[str]) -> "CrystalStore":
        """The crystals of a batch, with names, as a store."""
        return cls(
            crystals.fractional,
            crystals.species,
            crystals.lattice,
            crystals.layout.sizes,
            tuple(ids),
            crystals.per_crystal,
            crystals.per_atom,
        )

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def device(self) -> torch.device:
        return self.fractional.device

    @cached_property
    def layout(self) -> Layout:
        return Layout.of(self.sizes, self.device)

    def batch(self, rows: Sequence[int]) -> Crystals:
        """The crystals of these rows, in this order, as one batch on the store's device."""
        rows = [int(row) for row in rows]
        index = _to_device(rows, self.device)  # the only copy to the device
        first = self.layout.ptr[index]
        layout = Layout(self.layout.num_atoms[index], tuple(self.sizes[row] for row in rows))
        atom = torch.arange(layout.total, device=self.device) + layout.per_atom(first - layout.ptr[:-1])
        return Crystals(
            self.fractional.index_select(0, atom),
            self.lattice[index],
            self.species.index_select(0, atom),
            layout,
            {name: values[index] for name, values in self.per_crystal.items()},
            {name: values.index_select(0, atom) for name, values in self.per_atom.items()},
        )

    def subset(self, rows: Sequence[int]) -> "CrystalStore":
        """A store of these rows only, in this order."""
        return CrystalStore.of(self.batch(rows), [self.ids[int(row)] for row in rows])

    def to(self, device: torch.device | str) -> "CrystalStore":
        return attrs.evolve(
            self,
            fractional=self.fractional.to(device),
            species=self.species.to(device),
            lattice=self.lattice.to(device),
            per_crystal=_columns_to(self.per_crystal, device),
            per_atom=_columns_to(self.per_atom, device),
        )


def concatenated(stores: Sequence[CrystalStore]) -> CrystalStore:
    """The crystals of several stores, at least one, as one store in their order.

    Raises:
        KldmError: they do not all have the same columns.
    """
    for kind in ("per_crystal", "per_atom"):
        names = {name for store in stores for name in getattr(store, kind)}
        if incomplete := sorted(name for name in names if not all(name in getattr(store, kind) for store in stores)):
            remedy = "drop it from all of them, or fill it with NaN"
            raise KldmError("not all of the stores have this column", place=f"{kind}[{incomplete[0]!r}]", remedy=remedy)
    first = stores[0]
    return CrystalStore(
        fractional=torch.cat([store.fractional for store in stores]),
        species=torch.cat([store.species for store in stores]),
        lattice=torch.cat([store.lattice for store in stores]),
        sizes=tuple(size for store in stores for size in store.sizes),
        ids=tuple(name for store in stores for name in store.ids),
        per_crystal={name: torch.cat([store.per_crystal[name] for store in stores]) for name in first.per_crystal},
        per_atom={name: torch.cat([store.per_atom[name] for store in stores]) for name in first.per_atom},
    )


def lattice_matrix(lattice: Tensor) -> Tensor:
    """Lattice vectors as rows, [B, 6] to [B, 3, 3] in angstrom, in pymatgen's ``Lattice.from_parameters`` setting
    (c along z, a in the xz plane)."""
    a, b, c, alpha, beta, gamma = lattice.unbind(-1)
    cos_alpha, cos_beta, cos_gamma = alpha.cos(), beta.cos(), gamma.cos()
    sin_alpha, sin_beta = alpha.sin(), beta.sin()
    cos_gamma_star = ((cos_alpha * cos_beta - cos_gamma) / (sin_alpha * sin_beta)).clamp(-1, 1)
    sin_gamma_star = (1 - cos_gamma_star.square()).sqrt()
    zero = torch.zeros_like(a)
    rows = [
        torch.stack([a * sin_beta, zero, a * cos_beta], -1),
        torch.stack([-b * sin_alpha * cos_gamma_star, b * sin_alpha * sin_gamma_star, b * cos_alpha], -1),
        torch.stack([zero, zero, c], -1),
    ]
    return torch.stack(rows, -2)


def _check_columns(crystals: Crystals | CrystalStore) -> None:
    if not crystals.per_crystal and not crystals.per_atom:
        return
    if shared := sorted(set(crystals.per_crystal) & set(crystals.per_atom)):
        raise KldmError(f"two columns are called {shared[0]!r}", place="per_atom", remedy="rename one of them")
    kinds = (("crystal", crystals.per_crystal, len(crystals)), ("atom", crystals.per_atom, len(crystals.species)))
    for kind, columns, rows in kinds:
        for name, values in columns.items():
            if values.dim() == 0 or len(values) != rows:
                problem = f"must have one row for each {kind}, {rows} in all, but has the shape {tuple(values.shape)}"
                raise KldmError(problem, place=f"per_{kind}[{name!r}]")


def _columns_to(columns: Mapping[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    return {name: values.to(device) for name, values in columns.items()}


def _to_device(numbers: Sequence[int], device: torch.device | str) -> Tensor:
    """int64 on the device; to a GPU from pinned memory, so that the host does not wait for queued work."""
    tensor = torch.tensor(numbers, dtype=torch.int64)
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
