"""Batches in pieces: how they are cut, and that losses, gradients and training do not depend on it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kldm.crystals import Crystals, Layout
from kldm.errors import KldmError
from kldm.interfaces import Channel, Noised
from kldm.model import JointModel, NoisedBatch
from kldm.processes import Given
from kldm.runtime.distributed import Lost, World
from kldm.runtime.pieces import pieces, shares
from kldm.training import Training, fit
from kldm.training.gradients import Gradients, _explained_errors
from tests.oracles import random_crystals
from tests.small import losses, random_store, small_conditional_model, small_dng_model, small_model

SIZES = (3, 1, 5, 2, 4, 1)


def cost(sizes: tuple[int, ...] | list[int]) -> int:
    return sum(max(1, size * (size - 1)) for size in sizes)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 9))
def test_shares_follow_each_other_and_are_about_equal(sizes: list[int], count: int) -> None:
    found = shares(sizes, count)
    assert [index for first, last in found for index in range(first, last)] == list(range(len(sizes)))
    assert len(found) == count
    largest = max(cost([size]) for size in sizes)
    for first, last in found:
        assert abs(cost(sizes[first:last]) - cost(sizes) / count) <= largest


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 4000), st.data())
def test_pieces_are_as_large_as_they_may_be(sizes: list[int], max_pairs: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(sizes) - 1))
    last = data.draw(st.integers(first + 1, len(sizes)))
    found = pieces(sizes, (first, last), max_pairs)
    assert [index for piece in found for index in range(*piece)] == list(range(first, last))
    for number, (start, end) in enumerate(found):
        assert cost(sizes[start:end]) <= max_pairs or end == start + 1
        if number + 1 < len(found):
            assert cost(sizes[start : end + 1]) > max_pairs
    assert pieces(sizes, (first, last), None) == [(first, last)]
    assert pieces(sizes, (first, first), max_pairs) == [(first, first)]


def batch(model: JointModel, sizes: tuple[int, ...] = SIZES) -> NoisedBatch:
    s = torch.linspace(0.2, 1.0, len(sizes), dtype=torch.float64)
    return model.noised(random_crystals(sizes, 0), s, torch.Generator().manual_seed(0))


def gradient(model: JointModel) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("sizes", [SIZES, (1, 1, 1)], ids=["of all sizes", "of one atom each"])
@pytest.mark.parametrize("max_pairs", [1, 12, 30])
@pytest.mark.parametrize("make", [small_model, small_dng_model, small_conditional_model])
def test_pieces_add_up_to_the_whole(make: Callable[[], JointModel], max_pairs: int, sizes: tuple[int, ...]) -> None:
    """Oracle: the losses of the whole batch, differentiated at once."""
    model = make().double()
    whole = batch(model, sizes)
    expected = model(whole)
    model.total(expected).backward()  # type: ignore[no-untyped-call]
    wanted = gradient(model)
    model.zero_grad()
    found = Gradients(model, World(), max_pairs).add(whole)
    torch.testing.assert_close(gradient(model), wanted, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found["loss"], model.total(expected).detach(), rtol=1e-12, atol=0)
    for name, loss in expected.items():
        torch.testing.assert_close(found[f"loss_{name}"], loss.detach(), rtol=1e-12, atol=0)


def test_a_batch_that_fits_is_computed_as_without_any_of_this_to_the_bit() -> None:
    model = small_dng_model().double()
    whole = batch(model)
    losses = model(whole)
    model.total(losses).backward()  # type: ignore[no-untyped-call]
    wanted = gradient(model)
    for max_pairs in (None, cost(SIZES)):
        model.zero_grad()
        found = Gradients(model, World(), max_pairs).add(whole)
        assert torch.equal(gradient(model), wanted)
        assert torch.equal(found["loss"], model.total(losses))
        assert all(torch.equal(found[f"loss_{name}"], loss) for name, loss in losses.items())


def test_the_network_never_sees_more_pairs_than_allowed() -> None:
    model = small_model().double()
    seen: list[int] = []
    model.network.register_forward_pre_hook(lambda _, arguments: seen.append(cost(arguments[2].sizes)))
    Gradients(model, World(), 12).add(batch(model))
    assert len(seen) > 1
    assert max(seen) == 20  # the crystal of five atoms, alone
    assert sum(seen) == cost(SIZES)
    assert sorted(seen)[-2] <= 12


def test_training_in_pieces_is_training(tmp_path: Path) -> None:
    store = random_store((3, 2, 4, 1, 5))
    whole = Training(epochs=3, batch_size=4, ema_start=1, validate_every=0, checkpoint_every=10, precision="fp32")
    for name, settings in (("whole", whole), ("pieces", attrs.evolve(whole, max_pairs=10))):
        fit(small_model(), store, settings, tmp_path / name, {})
    at_once, in_pieces = losses(tmp_path / "whole"), losses(tmp_path / "pieces")
    assert at_once != in_pieces  # rounded in another order
    for left, right in zip(at_once, in_pieces, strict=True):
        assert right == pytest.approx(left, rel=1e-5)


@attrs.frozen
class Odd(Given):
    """Conditions on what has no row per atom or crystal, or is to predict something of both."""

    mode: Literal["rows", "both"] = "rows"

    @property
    def predicts(self) -> tuple[Channel, ...]:
        if self.mode == "rows":
            return ()
        return Channel("charge", 1, "atom", "real"), Channel("energy", 1, "crystal", "real")

    def noise(self, clean: Crystals, s: Tensor, rng: torch.Generator) -> Noised:
        known = Given().noise(clean, s, rng)
        return Noised(known.latent, {"odd": clean.lattice.new_zeros(7)}) if self.mode == "rows" else known


@pytest.mark.parametrize(("mode", "message"), [("rows", r"shape \(7,\)"), ("both", "numbers of atoms and of crystals")])
def test_what_cannot_be_divided_is_told(mode: Literal["rows", "both"], message: str) -> None:
    model = small_dng_model(Odd(mode=mode)).double()
    whole = batch(model)
    divide = partial(whole.part, 0, 2) if mode == "rows" else partial(model.shares, Layout.of((3, 1)), whole.layout)
    with pytest.raises(KldmError, match=rf"model\.species: .*{message}"):
        divide()


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (RuntimeError("[/src/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:9"), Lost),
        (torch.distributed.DistBackendError("NCCL error: remote process exited"), Lost),
        (RuntimeError("Expected to have finished reduction in the prior iteration"), KldmError),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_torch_says_of_other_processes_is_understood_and_nothing_else(
    raised: Exception, expected: type[Exception]
) -> None:
    with pytest.raises(Exception) as found, _explained_errors():  # noqa: PT011 (which one is the question)
        raise raised
    assert type(found.value) is expected
