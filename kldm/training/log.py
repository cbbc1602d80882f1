"""The log of a training: ``train.jsonl``, TensorBoard's files and a progress bar."""

import json
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from tqdm import tqdm

from kldm.errors import KldmError
from kldm.runtime.files import atomic_write

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger("kldm.training")


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
        self._folder, self._quiet = folder, quiet
        if not quiet:
            _truncate(folder / "train.jsonl", next_row)
        self._board: SummaryWriter | None = None
        if not quiet:
            with self._dispensable():
                self._board = _board(folder / "tensorboard", next_row)
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
            with self._dispensable():
                self._board.close()

    @contextmanager
    def _dispensable(self) -> Iterator[None]:
        """TensorBoard's files are given up where they cannot be written. Training goes on without them."""
        try:
            yield
        except OSError as error:
            self._board = None
            problem = error.strerror or error
            logger.warning("TensorBoard's files cannot be written (%s); training goes on without them", problem)

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
        if self._quiet:
            return
        try:
            with (self._folder / "train.jsonl").open("a") as log:
                entry = {"epoch": number, "step": step, "seconds": round(seconds, 2), **row}
                log.write(json.dumps(entry) + "\n")
        except OSError as error:
            problem = f"cannot write the log ({error.strerror}); the last checkpoint is complete"
            remedy = "free some space and run the same command"
            raise KldmError(problem, place=str(self._folder), remedy=remedy) from error
        if self._board is not None:
            with self._dispensable():
                for name, value in row.items():
                    self._board.add_scalar(f"train/{name}", value, step)
        self._bar.set_postfix({name: f"{row[name]:.4g}" for name in ("loss", "validation") if name in row})


def _board(folder: Path, next_row: int) -> "SummaryWriter":
    from torch.utils.tensorboard import SummaryWriter

    usual = threading.excepthook

    def quiet(told: threading.ExceptHookArgs) -> None:
        # Its thread raises again in the main thread what it cannot write.
        if not (type(told.thread).__module__.startswith("tensorboard.") and isinstance(told.exc_value, OSError)):
            usual(told)

    threading.excepthook = quiet
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
