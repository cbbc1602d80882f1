"""A network that dies, or has torchrun stopped, in the process and at the call that the environment names."""

MORTAL = """\
import os
import signal
import time

import torch
from torch import Tensor, nn

from kldm import network
from kldm.crystals import Layout
from kldm.interfaces import Interface, Latent
from kldm.networks import CSPVNet


@network("mortal.v1")
class Mortal(CSPVNet):
    calls = 0

    def __init__(self, interface: Interface, /, *, hidden: int = 8) -> None:
        super().__init__(interface, hidden=hidden, layers=1, frequencies=4, time_features=8)
        self.idle = nn.Parameter(torch.zeros(3))  # takes part in no loss

    def forward(self, latent: Latent, s: Tensor, layout: Layout) -> dict[str, Tensor]:
        Mortal.calls += 1
        now = f"{os.environ.get('RANK', 0)}@{Mortal.calls}"
        if os.environ.get("KILLED") == now:
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("SIGNALLED") == now:
            os.kill(os.getppid(), signal.SIGTERM)  # torchrun itself
        if "SIGNALLED" in os.environ:
            time.sleep(0.2)  # for the signal to arrive before the end
        return super().forward(latent, s, layout)
"""
