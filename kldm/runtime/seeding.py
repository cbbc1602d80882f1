"""Random streams named by what they are for."""

import hashlib
import json

import torch


def seeded(device: torch.device, *key: int | str) -> torch.Generator:
    """A generator on the device whose stream depends on the key alone."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
