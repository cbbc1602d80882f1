"""The joint model: one process per modality, one network for all of them."""

from collections.abc import Callable, Mapping
from itertools import chain

import attrs
import torch
from torch import Tensor, nn

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

_MODALITIES = ("coordinates", "lattice", "species")


@attrs.frozen(eq=False)
class NoisedBatch:
    """A batch after its noise, ready for the network.

    Attributes:
        draws: latent and target of each modality.
        s: [B] times.
        layout: which atom belongs to which crystal.
        weight: [B] by which the gradient of each crystal's losses is multiplied; None: 1.
    """

    draws: Mapping[str, Noised]
    s: Tensor
    layout: Layout
    weight: Tensor | None = None

    def part(self, first: int, last: int) -> "NoisedBatch":
        """Crystals ``first`` to ``last``, the latter excluded: views, no copies."""
        sizes = self.layout.sizes
        start = sum(sizes[:first])
        atoms, crystals = slice(start, start + sum(sizes[first:last])), slice(first, last)

        def rows(name: str, values: Tensor) -> Tensor:
            # Where there are as many atoms as crystals, each crystal has one, and both slices are the same.
            if values.dim() and len(values) == self.layout.total:
                return values[atoms]
            if values.dim() and len(values) == len(self.layout):
                return values[crystals]
            problem = f"its noise has a tensor of shape {tuple(values.shape)}, with no row per atom or crystal"
            raise KldmError(problem, place=f"model.{_place(name)}", remedy="no batch with it can be divided")

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

    There is no task: crystal structure prediction and de-novo generation differ in the species process alone. A
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
                raise KldmError("the name is a modality's", place=f"conditions.{name}", remedy="choose another")
        self._processes: dict[str, DiffusionProcess] = {**modalities, **(conditions or {})}
        self.weights = dict(weights or {})
        for name in self.weights:
            if name not in self._processes:
                raise KldmError("no such modality", place=f"weights.{name}", remedy=nearest(name, self._processes))
        learnt = [self.weights.get(name, 1.0) for name, process in self._processes.items() if process.predicts]
        if not all(weight >= 0 for weight in self.weights.values()) or not sum(learnt) > 0:
            raise KldmError("wants numbers of at least 0, not all of them 0 for what is learnt", place="weights")
        self.interface = _merged(self._processes)
        try:
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
        shown = (_shown(self._processes[name], latent, s, layout) for name, latent in latents.items())
        merged = dict(chain.from_iterable(latent.items() for latent in shown))
        rounded = used_precision(self.precision, s.device) == "bf16"
        with torch.autocast(s.device.type, dtype=torch.bfloat16, enabled=rounded):
            output: Prediction = self.network(merged, s, layout)
        return {
            name: {channel.name: output[channel.name].to(s.dtype) for channel in process.predicts}
            for name, process in self._processes.items()
        }

    def noised(self, clean: Crystals, s: Tensor, rng: torch.Generator) -> NoisedBatch:
        """The crystals with the noise of times s [B], every modality with its own."""
        return NoisedBatch(
            {name: process.noise(clean, s, rng) for name, process in self._processes.items()}, s, clean.layout
        )

    def forward(self, batch: NoisedBatch) -> dict[str, Tensor]:
        """The scalar loss of every modality that predicts, unweighted; one network call."""
        predictions = self.predict({name: draw.latent for name, draw in batch.draws.items()}, batch.s, batch.layout)
        if batch.weight is not None:
            predictions = {
                name: _with_gradients(process, predictions[name], batch.weight, batch.layout)
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
        """By modality, what the loss of a part of a batch weighs in that of the whole: its share of the rows that the
        modality predicts (see ``DiffusionProcess.loss``)."""
        shares = {"atom": part.total / whole.total, "crystal": len(part) / len(whole)}
        found = {}
        for name, process in self._processes.items():
            if process.predicts:
                kinds = {channel.per for channel in process.predicts}
                if len(kinds) > 1:
                    problem = "it predicts numbers of atoms and of crystals, so no batch with it can be divided"
                    raise KldmError(problem, place=f"model.{_place(name)}", remedy="make it two processes")
                found[name] = shares[kinds.pop()]
        return found

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted mean of the modalities' losses."""
        weight = {name: self.weights.get(name, 1.0) for name in losses}
        terms = [weight[name] * loss for name, loss in losses.items()]
        return torch.stack(terms).sum() / sum(weight.values())

    def fitted(self, train: CrystalStore) -> dict[str, DiffusionProcess]:
        """The processes by modality, those that ask for it (``Fits``) with their statistics of the training split."""
        return {name: p.fitted(train) if isinstance(p, Fits) else p for name, p in self._processes.items()}

    def replace(self, processes: Mapping[str, DiffusionProcess]) -> bool:
        """Put other processes in the place of the model's; returns False, and leaves the model as it is, where the
        network was built for other channels than theirs."""
        new = _merged(processes)
        if new != self.interface or new.log_noise != self.interface.log_noise:
            return False
        self._processes = dict(processes)
        return True


def statistics(processes: Mapping[str, DiffusionProcess]) -> dict[str, Mapping[str, Json]]:
    """The recipe's keys with the statistics of the training split that fitted processes hold, by the place of the
    process within [model], such as ``lattice`` or ``conditions.energy``."""
    found = {_place(name): process.statistics() for name, process in processes.items() if isinstance(process, Fits)}
    return {place: held for place, held in found.items() if held}


def _place(name: str) -> str:
    """Where a process stands within [model]."""
    return name if name in _MODALITIES else f"conditions.{name}"


def _merged(processes: Mapping[str, DiffusionProcess]) -> Interface:
    reads: dict[str, Channel] = {}
    predicts: dict[str, Channel] = {}
    for name, process in processes.items():
        for side, channels in ((reads, process.reads), (predicts, process.predicts)):
            for channel in channels:
                if channel.name in side:
                    problem = f"the channel {channel.name!r} is another process's already"
                    raise KldmError(problem, place=_place(name))
                side[channel.name] = channel
    coordinates = processes["coordinates"]
    log_noise = coordinates.log_noise if isinstance(coordinates, KnowsItsNoise) else None
    return Interface(tuple(reads.values()), tuple(predicts.values()), log_noise)


def _shown(process: DiffusionProcess, latent: Latent, s: Tensor, layout: Layout) -> Latent:
    return process.shown(latent, s, layout) if isinstance(process, Shows) else latent


def _with_gradients(process: DiffusionProcess, prediction: Prediction, weight: Tensor, layout: Layout) -> Prediction:
    """The same predictions, whose gradients are multiplied by the weight [B] of their crystal.

    A loss is a mean of terms that know their own crystal alone, so that this weights the terms' gradients, whatever the
    loss is.
    """
    rows = {"crystal": weight, "atom": layout.per_atom(weight)}
    found = {}
    for channel in process.predicts:
        values = prediction[channel.name]
        still = values.detach()
        found[channel.name] = still + rows[channel.per].unsqueeze(-1) * (values - still)
    return found
