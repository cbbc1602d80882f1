"""How the same numbers are computed: the choices that change speed and memory, not what is computed."""

import os
from typing import Literal, Protocol, get_args, runtime_checkable

import attrs
import torch

from kldm.compiling import fuse
from kldm.errors import KldmError

Messages = Literal["autograd", "manual", "triton"]


@attrs.frozen(kw_only=True)
class Execution:
    """Choices of a run that may change when it is resumed.

    Args:
        messages: how networks over pairs of atoms compute their messages: ``manual``, with a backward pass written by
            hand that keeps two numbers per edge and hidden unit; ``autograd``, in plain torch, which can be
            differentiated twice; ``triton``, one fused kernel on an NVIDIA GPU, elsewhere ``manual``.
        compile: whether ``torch.compile`` is used, where a network provides for it and for the noise and targets of
            training; the first batches take minutes, and ``messages`` says nothing.
        graphs: whether sampling on an NVIDIA GPU replays its steps as a CUDA graph.
        deterministic: whether a GPU computes the same bits again; slower.

    Raises:
        KldmError: no such kind of messages.
    """

    messages: Messages = "manual"
    compile: bool = False
    graphs: bool = False
    deterministic: bool = False

    def __attrs_post_init__(self) -> None:
        if self.messages not in get_args(Messages):
            known = ", ".join(get_args(Messages))
            raise KldmError(f"must be one of {known}, got {self.messages!r}", place="messages")


@runtime_checkable
class Executes(Protocol):
    """A network that has a choice in how it computes."""

    def execute(self, execution: Execution) -> None:
        """Take these choices from now on."""
        ...


def set_execution(network: object, execution: Execution) -> None:
    """Choose how a network computes and, for the whole process, whether noise is compiled and torch reproducible."""
    if execution.deterministic:
        # Read when the GPU's matrix library starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.get_deterministic_debug_mode() != (2 if execution.deterministic else 0):
        # Not without need: it imports torch's compiler, which takes longer than to sample.
        torch.use_deterministic_algorithms(execution.deterministic)
    fuse(execution.compile)
    if isinstance(network, Executes):
        network.execute(execution)
