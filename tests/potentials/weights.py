"""Weights in the layout of MatterSim's files, small and random."""

from pathlib import Path
from typing import Any

import pytest
import torch

SIZES: dict[str, Any] = {"num_blocks": 1, "units": 8, "max_l": 2, "max_n": 2, "cutoff": 4.0, "threebody_cutoff": 3.0}


def tiny_weights(path: Path) -> Path:
    """Write them; skips where MatterSim is not installed."""
    m3gnet: Any = pytest.importorskip("mattersim.forcefield.m3gnet.m3gnet", exc_type=ImportError)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = m3gnet.M3Gnet(device="cpu", **SIZES)
    torch.save({"model_name": "m3gnet", "model_args": network.model_args, "model": network.state_dict()}, path)
    return path
