"""Random streams that are seeded by their purpose."""

import hashlib
import json

import torch


def seeded(device: torch.device, *key: int | str) -> torch.Generator:
    """A generator on the device whose stream depends only on the key."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
