"""Losses and gradients of whole batches, computed in pieces that fit into memory and by all processes together."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kldm.errors import KldmError
from kldm.model import JointModel, NoisedBatch
from kldm.runtime.distributed import World, lost_peers
from kldm.runtime.pieces import Range, pieces, shares


class Gradients:
    """The gradient of a batch's total loss, whatever number of pieces and processes it is computed by.

    The loss of a batch is the mean of those of its pieces, weighted by rows (``JointModel.shares``), modality by
    modality. Every process has the noise of the whole batch, does its own share of the network's work, and averages
    its gradients with the others' through ``DistributedDataParallel``.

    Args:
        model: on its device, the same in all processes.
        world: the processes.
        max_pairs: largest number of ordered pairs of atoms in one forward and backward pass; None: no limit.
    """

    def __init__(self, model: JointModel, world: World, max_pairs: int | None) -> None:
        self.model, self.world, self.max_pairs = model, world, max_pairs
        self._parallel: DistributedDataParallel | None = None

    def add(self, batch: NoisedBatch) -> dict[str, Tensor]:
        """Add the gradient of the batch's loss to the parameters'; returns ``loss`` and ``loss_<modality>``, scalars.

        In several processes the gradient is the whole batch's for everyone, and the losses are the share's own: their
        sum over the processes is the batch's.

        Raises:
            Lost: another process is gone; the parameters are what they were.
        """
        own = shares(batch.layout.sizes, self.world.size)[self.world.rank]
        parts = pieces(batch.layout.sizes, own, self.max_pairs)
        if self.world.size > 1 and self._parallel is None:
            self._parallel = self._connected(batch)
        found: dict[str, Tensor] = {}
        for number, part in enumerate(parts, 1):
            losses = self._add_piece(batch, part, last=number == len(parts))
            found = {name: found[name] + loss if found else loss for name, loss in losses.items()}
        return found

    def _add_piece(self, batch: NoisedBatch, part: Range, last: bool) -> dict[str, Tensor]:
        if self._parallel is None:
            losses, loss = self._weighted(self.model, batch, part)
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            with nullcontext() if last else self._parallel.no_sync(), _explained():
                losses, loss = self._weighted(self._parallel, batch, part)
                (loss * self.world.size).backward()  # type: ignore[no-untyped-call]
        return {"loss": loss.detach(), **{f"loss_{name}": value.detach() for name, value in losses.items()}}

    def _weighted(self, model: nn.Module, batch: NoisedBatch, part: Range) -> tuple[Mapping[str, Tensor], Tensor]:
        """The losses of a part of the batch as terms of the whole batch's, and their total."""
        if part == (0, len(batch.layout)):
            losses: Mapping[str, Tensor] = model(batch)
        else:
            weights = self.model.shares(batch.part(*part).layout, batch.layout)
            # A process without a share takes part with any crystal, of no weight.
            piece = batch.part(*part) if part[0] < part[1] else batch.part(0, 1)
            losses = {name: weights[name] * loss for name, loss in model(piece).items()}
        return losses, self.model.total(losses)

    def _connected(self, batch: NoisedBatch) -> DistributedDataParallel:
        """The model for all processes, which must know whether all of its parameters take part in a loss."""
        largest = max(range(len(batch.layout)), key=batch.layout.sizes.__getitem__)
        losses: Mapping[str, Tensor] = self.model(batch.part(largest, largest + 1))
        self.model.total(losses).backward()  # type: ignore[no-untyped-call]
        idle = any(parameter.grad is None for parameter in self.model.parameters() if parameter.requires_grad)
        self.model.zero_grad()
        with lost_peers(), warnings.catch_warnings():
            # Newer versions of torch call the option by another name, which older ones do not know.
            warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
            return DistributedDataParallel(self.model, broadcast_buffers=False, find_unused_parameters=idle)


@contextmanager
def _explained() -> Iterator[None]:
    """What ``DistributedDataParallel`` raises of lost processes, and of parameters that are in use now and then."""
    try:
        with lost_peers():
            yield
    except RuntimeError as error:
        if "Expected to have finished reduction" not in str(error):
            raise
        problem = "some parameters take part in the loss of some batches only, which several processes cannot train"
        raise KldmError(problem, place="model.network", remedy="let all take part, times 0 if need be") from error
