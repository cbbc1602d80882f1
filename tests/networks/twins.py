"""The fast and the readable form of a network, with the same weights."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kldm.interfaces import Interface
from kldm.networks import CSPNet, CSPNetPlain, CSPVNet, CSPVNetPlain
from kldm.networks.pair_network import PairNetwork

Build = Callable[..., PairNetwork]
FAMILIES: Mapping[str, tuple[Build, Build]] = {"cspvnet": (CSPVNet, CSPVNetPlain), "cspnet": (CSPNet, CSPNetPlain)}


def twins(family: str, interface: Interface, hidden: int = 48, layers: int = 3) -> tuple[PairNetwork, PairNetwork]:
    """Fast and plain."""
    torch.manual_seed(0)
    fast, plain = (
        build(interface, hidden=hidden, layers=layers, time_features=16, frequencies=128) for build in FAMILIES[family]
    )
    plain.load_state_dict(fast.state_dict())
    return fast, plain


def loss(prediction: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([value.square().mean() for value in prediction.values()]).sum()


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm().clamp(min=1e-30))
