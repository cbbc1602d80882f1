"""The log of a training: ``train.jsonl``, TensorBoard's files and a progress bar."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from tqdm import tqdm

from kldm.errors import KldmError
from kldm.runtime.files import atomic_write

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TrainingLog:
    """One row per epoch in ``train.jsonl`` and TensorBoard, one tick of the progress bar per step.

    Args:
        folder: the folder of the run.
        step: number of steps done before.
        next_row: the smallest step that the next row can have. Rows from this step on, left by a run that was killed
            after its last checkpoint, are dropped, because they will be repeated.
        total: number of all steps, if it is known.
        quiet: whether nothing is shown or written, as in all processes of a run but one.
    """

    def __init__(self, folder: Path, *, step: int, next_row: int, total: int | None, quiet: bool) -> None:
        self._folder = folder
        if not quiet:
            _truncate(folder / "train.jsonl", next_row)
        self._board = None if quiet else _board(folder / "tensorboard", next_row)
        self._bar = tqdm(
            desc="train", unit="step", total=total, initial=step, smoothing=0.05, dynamic_ncols=True, disable=quiet
        )

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._board is not None:
            self._board.close()

    def advance(self) -> None:
        """Count a step."""
        self._bar.update()

    def epoch(self, number: int, step: int, seconds: float, row: Mapping[str, float]) -> None:
        """Write the row of an epoch.

        Args:
            number: the number of the epoch, from 1.
            step: steps done at its end.
            seconds: duration of training until its end.
            row: its values by name.

        Raises:
            KldmError: the row cannot be written.
        """
        if self._board is None:
            return
        try:
            with (self._folder / "train.jsonl").open("a") as log:
                entry = {"epoch": number, "step": step, "seconds": round(seconds, 2), **row}
                log.write(json.dumps(entry) + "\n")
        except OSError as error:
            problem = f"cannot write the log ({error.strerror}); the last checkpoint is complete"
            remedy = "free some space and run the same command"
            raise KldmError(problem, place=str(self._folder), remedy=remedy) from error
        for name, value in row.items():
            self._board.add_scalar(f"train/{name}", value, step)
        self._bar.set_postfix({name: f"{row[name]:.4g}" for name in ("loss", "validation") if name in row})


def _board(folder: Path, next_row: int) -> "SummaryWriter":
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=next_row)


def _truncate(path: Path, step: int) -> None:
    """Drop the rows from a step on, and a line that was cut off when a run was killed."""
    if not path.exists():
        return
    lines = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] < step:
                lines.append(line + "\n")
        except (ValueError, KeyError):
            continue
    with atomic_write(path) as temporary:
        temporary.write_text("".join(lines))
