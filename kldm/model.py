"""The joint model: one process per modality, one network for all of them."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kldm.crystals import Crystals, CrystalStore, Layout
from kldm.errors import KldmError, nearest
from kldm.execution import Precision, used_precision
from kldm.interfaces import (
    Channel,
    DiffusionProcess,
    Fits,
    Interface,
    Json,
    KnowsItsNoise,
    Latent,
    Noised,
    Prediction,
    ReadsColumns,
    ScoreNetwork,
    Shows,
)
from kldm.memory import machine_memory

_MODALITIES = ("coordinates", "lattice", "species")


@attrs.frozen(eq=False)
class NoisedBatch:
    """A noised batch, ready for the network.

    Attributes:
        draws: latent and target of each modality.
        s: [B] times.
        layout: which atom belongs to which crystal.
        weight: [B], factors of the gradients of each crystal's losses; None: 1.
    """

    draws: Mapping[str, Noised]
    s: Tensor
    layout: Layout
    weight: Tensor | None = None

    def part(self, first: int, last: int) -> "NoisedBatch":
        """Crystals ``first`` to ``last - 1``, as views."""
        sizes = self.layout.sizes
        start = sum(sizes[:first])
        atoms, crystals = slice(start, start + sum(sizes[first:last])), slice(first, last)

        def rows(name: str, values: Tensor) -> Tensor:
            # Where there are as many atoms as crystals, each crystal has one, and both slices are the same.
            if values.dim() and len(values) == self.layout.total:
                return values[atoms]
            if values.dim() and len(values) == len(self.layout):
                return values[crystals]
            problem = f"a tensor of its noise has the shape {tuple(values.shape)}, so no batch with it can be divided"
            raise KldmError(problem, place=f"model.{_place(name)}", remedy="give it one row per atom or per crystal")

        draws = {
            name: Noised(
                {key: rows(name, values) for key, values in draw.latent.items()},
                {key: rows(name, values) for key, values in draw.target.items()},
            )
            for name, draw in self.draws.items()
        }
        weight = None if self.weight is None else self.weight[crystals]
        return NoisedBatch(draws, self.s[crystals], self.layout.part(first, last), weight)


class JointModel(nn.Module):
    """Merges the channels of its processes into one ``Interface``, builds the network for it, makes the one network
    call, and hands each process its own prediction (KLDM, Algorithms 1 and 2).

    There is no task: crystal structure prediction and de-novo generation differ only in the species process. A
    process that predicts nothing conditions the others.

    Args:
        coordinates, lattice, species: the process of each modality.
        network: builds the network from the merged interface.
        conditions: further conditioning processes by name.
        weights: weight of a modality's loss by name; 1 where absent.

    Attributes:
        precision: of the network's products; see ``Training`` and ``set_precision``.
    """

    def __init__(
        self,
        *,
        coordinates: DiffusionProcess,
        lattice: DiffusionProcess,
        species: DiffusionProcess,
        network: Callable[[Interface], ScoreNetwork],
        conditions: Mapping[str, DiffusionProcess] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        modalities = dict(zip(_MODALITIES, (coordinates, lattice, species), strict=True))
        for name in conditions or {}:
            if name in modalities:
                raise KldmError("a modality has this name", place=f"conditions.{name}", remedy="choose another")
        self._processes: dict[str, DiffusionProcess] = {**modalities, **(conditions or {})}
        self.weights = dict(weights or {})
        for name in self.weights:
            if name not in self._processes:
                raise KldmError("no such modality", place=f"weights.{name}", remedy=nearest(name, self._processes))
        learnt = [self.weights.get(name, 1.0) for name, process in self._processes.items() if process.predicts]
        if not all(0 <= weight <= 1e6 for weight in self.weights.values()) or not sum(learnt) > 0:
            raise KldmError("must be from 0 to 1e6, and above 0 for some modality that is learnt", place="weights")
        self.interface = _merged(self._processes)
        try:
            with _Bounded():
                built = network(self.interface)
        except KldmError as error:
            place = f"network.{error.place}" if error.place else "network"
            raise KldmError(error.problem, place=place, remedy=error.remedy) from None
        if not isinstance(built, nn.Module):
            raise KldmError(f"{type(built).__name__} is not a torch.nn.Module", place="network")
        self.network = built
        self.precision: Precision = "fp32"

    @property
    def processes(self) -> Mapping[str, DiffusionProcess]:
        """The processes by modality."""
        return self._processes

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the crystals that its processes need, each once."""
        processes = (process for process in self._processes.values() if isinstance(process, ReadsColumns))
        return tuple(dict.fromkeys(chain.from_iterable(process.columns for process in processes)))

    def predict(self, latents: Mapping[str, Latent], s: Tensor, layout: Layout) -> Mapping[str, Prediction]:
        """One network call at times s [B]; each modality gets the channels it asked for."""
        merged: dict[str, Tensor] = {}
        for name, latent in latents.items():
            process = self._processes[name]
            merged.update(process.shown(latent, s, layout) if isinstance(process, Shows) else latent)
        rounded = used_precision(self.precision, s.device) == "bf16"
        with torch.autocast(s.device.type, dtype=torch.bfloat16, enabled=rounded):
            output: Prediction = self.network(merged, s, layout)
        return {
            name: {channel.name: output[channel.name].to(s.dtype) for channel in process.predicts}
            for name, process in self._processes.items()
        }

    def noised(self, clean: Crystals, s: Tensor, rng: torch.Generator) -> NoisedBatch:
        """The crystals, every modality noised by its own process to times s [B]."""
        return NoisedBatch(
            {name: process.noise(clean, s, rng) for name, process in self._processes.items()}, s, clean.layout
        )

    def forward(self, batch: NoisedBatch) -> dict[str, Tensor]:
        """The scalar loss of every modality that predicts, unweighted; one network call."""
        predictions = self.predict({name: draw.latent for name, draw in batch.draws.items()}, batch.s, batch.layout)
        if batch.weight is not None:
            predictions = {
                name: _with_weights(process, predictions[name], batch.weight, batch.layout)
                for name, process in self._processes.items()
            }
        return {
            name: process.loss(predictions[name], batch.draws[name], batch.s, batch.layout)
            for name, process in self._processes.items()
            if process.predicts
        }

    def losses(self, clean: Crystals, s: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """The scalar loss of every modality that predicts, unweighted, at times s [B]."""
        losses: dict[str, Tensor] = self(self.noised(clean, s, rng))
        return losses

    def shares(self, part: Layout, whole: Layout) -> dict[str, float]:
        """The weight of a part's loss in the loss of the whole batch, by modality: its share of the rows that the
        modality predicts (see ``DiffusionProcess.loss``)."""
        share = {"atom": part.total / whole.total, "crystal": len(part) / len(whole)}
        shares = {}
        for name, process in self._processes.items():
            if process.predicts:
                kinds = {channel.per for channel in process.predicts}
                if len(kinds) > 1:
                    problem = "it predicts numbers of atoms and of crystals, so no batch can be divided"
                    raise KldmError(problem, place=f"model.{_place(name)}", remedy="make it two processes")
                shares[name] = share[kinds.pop()]
        return shares

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted mean of the modalities' losses."""
        weight = {name: self.weights.get(name, 1.0) for name in losses}
        terms = [weight[name] * loss for name, loss in losses.items()]
        return torch.stack(terms).sum() / sum(weight.values())

    def fitted(self, train: CrystalStore) -> dict[str, DiffusionProcess]:
        """The processes by modality; those with statistics (``Fits``) are fitted to the training split."""
        return {name: p.fitted(train) if isinstance(p, Fits) else p for name, p in self._processes.items()}

    def replace(self, processes: Mapping[str, DiffusionProcess]) -> bool:
        """Replace the model's processes. Returns False, and changes nothing, if the network was built for other
        channels."""
        new = _merged(processes)
        if new != self.interface or new.log_noise != self.interface.log_noise:
            return False
        self._processes = dict(processes)
        return True


def statistics(processes: Mapping[str, DiffusionProcess]) -> dict[str, Mapping[str, Json]]:
    """The statistics of fitted processes as keys of the recipe, by the place of the process within [model], such as
    ``lattice`` or ``conditions.energy``."""
    fits = {_place(name): process.statistics() for name, process in processes.items() if isinstance(process, Fits)}
    return {place: fit for place, fit in fits.items() if fit}


def _place(name: str) -> str:
    """The key of a process within [model]."""
    return name if name in _MODALITIES else f"conditions.{name}"


_MOST: ContextVar[int | None] = ContextVar("parameters", default=None)


@contextmanager
def of_at_most(parameters: int) -> Iterator[None]:
    """Within the block, models with more parameters are refused before they take memory: a small checkpoint of a
    stranger can hold the recipe of a model that has not its weights."""
    token = _MOST.set(parameters)
    try:
        yield
    finally:
        _MOST.reset(token)


class _Bounded(TorchFunctionMode):
    """Refuses to make the weights of a network that no memory of this machine holds, or more of them than are at hand,
    before they are filled with numbers. Modules of torch make their weights by ``torch.empty``."""

    def __init__(self) -> None:
        super().__init__()
        self._count, self._most, self._memory = 0, _MOST.get(), machine_memory()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.empty and args:
            self._count += math.prod(args if isinstance(args[0], int) else args[0])
            if self._most is not None and self._count > self._most:
                raise KldmError(
                    f"it has more parameters than the checkpoint of its recipe has numbers ({self._most:,})"
                )
            if self._memory is not None and 4 * self._count > self._memory:
                problem = f"its parameters take more than the {self._memory / 1e9:,.0f} GB of memory of this machine"
                raise KldmError(problem, remedy="make it smaller")
        return func(*args, **(kwargs or {}))


def _merged(processes: Mapping[str, DiffusionProcess]) -> Interface:
    reads: dict[str, Channel] = {}
    predicts: dict[str, Channel] = {}
    for name, process in processes.items():
        for side, channels in ((reads, process.reads), (predicts, process.predicts)):
            for channel in channels:
                if channel.name in side:
                    problem = f"another process already has the channel {channel.name!r}"
                    raise KldmError(problem, place=_place(name))
                side[channel.name] = channel
    coordinates = processes["coordinates"]
    log_noise = coordinates.log_noise if isinstance(coordinates, KnowsItsNoise) else None
    return Interface(tuple(reads.values()), tuple(predicts.values()), log_noise)


def _with_weights(process: DiffusionProcess, prediction: Prediction, weight: Tensor, layout: Layout) -> Prediction:
    """The same predictions, with gradients multiplied by the weight [B] of their crystal.

    A loss is a mean of terms that each depend on one crystal only, so this weights the gradients of the terms, whatever
    the loss is.
    """
    rows = {"crystal": weight, "atom": layout.per_atom(weight)}
    weighted = {}
    for channel in process.predicts:
        values = prediction[channel.name]
        constant = values.detach()
        weighted[channel.name] = constant + rows[channel.per].unsqueeze(-1) * (values - constant)
    return weighted
