"""Losses and gradients of whole batches, computed by all processes together in pieces that fit into memory."""

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
    """Computes the gradient of a batch's total loss, which does not depend on the number of pieces and processes.

    The loss of each modality is the mean over the pieces, weighted by rows (``JointModel.shares``). Every process has
    the noise of the whole batch and does its share of the network's work; ``DistributedDataParallel`` averages the
    gradients of the processes.

    Args:
        model: on its device, the same in all processes.
        world: the processes.
        max_pairs: largest number of ordered pairs of atoms in one forward and backward pass; None sets no limit.
    """

    def __init__(self, model: JointModel, world: World, max_pairs: int | None) -> None:
        self.model, self.world, self.max_pairs = model, world, max_pairs
        self._parallel: DistributedDataParallel | None = None

    def add(self, batch: NoisedBatch) -> dict[str, Tensor]:
        """Add the gradient of the batch's loss to that of the parameters.

        With several processes, each gets the gradient of the whole batch, but the losses of its own share alone; their
        sum over the processes is the loss of the batch.

        Returns:
            The scalars ``loss`` and ``loss_<modality>``.

        Raises:
            Lost: another process is gone; the parameters have not changed.
        """
        own = shares(batch.layout.sizes, self.world.size)[self.world.rank]
        parts = pieces(batch.layout.sizes, own, self.max_pairs)
        if self.world.size > 1 and self._parallel is None:
            self._parallel = self._parallelized(batch)
        sums: dict[str, Tensor] = {}
        for number, part in enumerate(parts, 1):
            losses = self._add_piece(batch, part, last=number == len(parts))
            sums = {name: sums[name] + loss if sums else loss for name, loss in losses.items()}
        return sums

    def _add_piece(self, batch: NoisedBatch, part: Range, last: bool) -> dict[str, Tensor]:
        if self._parallel is None:
            losses, loss = self._weighted(self.model, batch, part)
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            with nullcontext() if last else self._parallel.no_sync(), _explained_errors():
                losses, loss = self._weighted(self._parallel, batch, part)
                (loss * self.world.size).backward()  # type: ignore[no-untyped-call]
        return {"loss": loss.detach(), **{f"loss_{name}": value.detach() for name, value in losses.items()}}

    def _weighted(self, model: nn.Module, batch: NoisedBatch, part: Range) -> tuple[Mapping[str, Tensor], Tensor]:
        """The contributions of a part of the batch to its losses, and their total."""
        if part == (0, len(batch.layout)):
            losses: Mapping[str, Tensor] = model(batch)
        else:
            weights = self.model.shares(batch.part(*part).layout, batch.layout)
            # A process without a share takes part with an arbitrary crystal of weight 0.
            piece = batch.part(*part) if part[0] < part[1] else batch.part(0, 1)
            losses = {name: weights[name] * loss for name, loss in model(piece).items()}
        return losses, self.model.total(losses)

    def _parallelized(self, batch: NoisedBatch) -> DistributedDataParallel:
        """The model wrapped for all processes; the wrapper must know whether a loss depends on all parameters."""
        largest = max(range(len(batch.layout)), key=batch.layout.sizes.__getitem__)
        losses: Mapping[str, Tensor] = self.model(batch.part(largest, largest + 1))
        self.model.total(losses).backward()  # type: ignore[no-untyped-call]
        unused = any(parameter.grad is None for parameter in self.model.parameters() if parameter.requires_grad)
        self.model.zero_grad()
        with lost_peers(), warnings.catch_warnings():
            # Newer versions of torch rename the option; older ones do not know the new name.
            warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
            return DistributedDataParallel(self.model, broadcast_buffers=False, find_unused_parameters=unused)


@contextmanager
def _explained_errors() -> Iterator[None]:
    """Explains errors of ``DistributedDataParallel``: lost processes, and parameters that some losses do not need."""
    try:
        with lost_peers():
            yield
    except RuntimeError as error:
        if "Expected to have finished reduction" not in str(error):
            raise
        problem = "some parameters take part in the loss of some batches only, which several processes cannot train"
        raise KldmError(problem, place="model.network", remedy="let all take part, times 0 if need be") from error
