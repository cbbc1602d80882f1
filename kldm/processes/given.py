"""Atom types as conditioning: crystal structure prediction."""

import attrs

from kldm.crystals import Crystals
from kldm.interfaces import Channel, Latent
from kldm.processes.conditioning import Conditioning
from kldm.registry import process


@process("given.v1")
@attrs.frozen(kw_only=True)
class Given(Conditioning):
    """The composition is given: the network reads each atom's type, a token Z - 1 in 0..99, and predicts none."""

    @property
    def reads(self) -> tuple[Channel, ...]:
        return (Channel("species", 100, "atom", "token"),)

    def known(self, crystals: Crystals) -> Latent:
        return {"species": crystals.species - 1}
