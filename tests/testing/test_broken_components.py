"""The checks find what is wrong: components with one planted fault each, and the same ones without it."""

from collections.abc import Callable, Mapping
from functools import partial

import attrs
import pytest
import torch
from torch import Tensor

from kldm.crystals import Layout
from kldm.interfaces import DiffusionProcess, Interface, Latent, Measurement, Move, Noised, Prediction, Samples
from kldm.networks import CSPVNet
from kldm.processes import LogTan, VPEuclidean
from kldm.samplers import EulerMaruyama, Stage
from kldm.testing import check_metric, check_network, check_process, check_sampler, small_model

SMALL_NETWORK = partial(CSPVNet, hidden=16, layers=1, frequencies=4, time_features=8)
LATTICE = partial(VPEuclidean, codec=LogTan(standardise=False))


@attrs.frozen(kw_only=True)
class SummedLoss(VPEuclidean):
    """A batch of twice as many crystals has twice the loss."""

    def loss(self, prediction: Prediction, noised: Noised, s: Tensor, layout: Layout) -> Tensor:
        (channel,) = self.predicts
        return (prediction[channel.name] - noised.target[channel.name]).square().sum()


class CountsAtoms(CSPVNet):
    """The first atom of a batch is another than the last."""

    def forward(self, latent: Latent, s: Tensor, layout: Layout) -> dict[str, Tensor]:
        found = super().forward(latent, s, layout)
        number = torch.arange(layout.total, dtype=s.dtype) - layout.per_atom(layout.ptr[:-1])
        return {
            name: values + number.unsqueeze(-1) if len(values) == layout.total else values
            for name, values in found.items()
        }


class SkipsTheLattice(EulerMaruyama):
    """The lattice stays at its prior."""

    def stages(self, processes: Mapping[str, DiffusionProcess]) -> tuple[Stage, ...]:
        return tuple(
            attrs.evolve(stage, moves={name: move for name, move in stage.moves.items() if name != "lattice"})
            for stage in super().stages(processes)
        )


@attrs.frozen
class Volume:
    """The mean volume per atom in cubic angstrom, and the share of requests that have one.

    Args:
        drops_failures: whether what could not be built is left out of that share.
    """

    drops_failures: bool = False

    def measure(self, samples: Samples) -> Measurement:
        built = [candidate.structure for candidate in samples.candidates if candidate.structure is not None]
        volumes = [structure.volume / len(structure) for structure in built if len(structure)]
        volumes = [volume for volume in volumes if 0 < volume < 1e6]
        asked = len(built) if self.drops_failures else len(samples.candidates)
        values = {
            "mean": sum(volumes) / len(volumes) if volumes else None,
            "share": len(volumes) / asked if asked else None,
        }
        return Measurement(values, definition={"largest": 1e6})


@pytest.mark.parametrize(
    ("check", "good", "bad", "sentence"),
    [
        (
            check_process,
            LATTICE(),
            partial(SummedLoss, codec=LogTan(standardise=False))(),
            "mean of those of its parts",
        ),
        (check_network, SMALL_NETWORK, partial(CountsAtoms, **SMALL_NETWORK.keywords), "permutation of the atoms"),
        (check_sampler, EulerMaruyama(steps=3), SkipsTheLattice(steps=3), "lattice: the crystals do not depend on"),
        (check_metric, Volume(), Volume(drops_failures=True), "it leaves failures out"),
    ],
    ids=["a loss that is a sum", "a network that counts atoms", "a modality skipped", "failures dropped"],
)
def test_the_planted_fault_is_found(check: Callable[[object], None], good: object, bad: object, sentence: str) -> None:
    check(good)
    with pytest.raises(AssertionError, match=sentence):
        check(bad)


def test_a_network_that_is_no_module_is_refused() -> None:
    def factory(interface: Interface) -> Callable[..., dict[str, Tensor]]:
        return lambda latent, s, layout: {}

    with pytest.raises(AssertionError, match=r"function is not a torch\.nn\.Module"):
        check_network(factory)


def test_what_a_component_raises_is_told_with_the_check() -> None:
    class Raises(Volume):
        def measure(self, samples: Samples) -> Measurement:
            raise ValueError("no such volume")

    with pytest.raises(AssertionError, match=r"^judges bad structures: it raises ValueError: no such volume$"):
        check_metric(Raises())


@attrs.frozen(kw_only=True)
class Glides(VPEuclidean):
    """A lattice with a move of another name."""

    @property
    def moves(self) -> Mapping[str, Move]:
        return {**super().moves, "glide": Move(self.flow)}


class Glider(EulerMaruyama):
    """The lattice glides."""

    def stages(self, processes: Mapping[str, DiffusionProcess]) -> tuple[Stage, ...]:
        return (Stage("start", {name: "glide" if name == "lattice" else "denoise" for name in processes}),)


def test_a_sampler_of_a_new_move_is_checked_with_the_process_that_has_it() -> None:
    process = Glides(codec=LogTan(standardise=False))
    check_process(process)
    check_sampler(Glider(steps=3), partial(small_model, lattice=process))
    with pytest.raises(AssertionError, match=r"KldmError: model.lattice: .*no move 'glide'"):
        check_sampler(Glider(steps=3))
