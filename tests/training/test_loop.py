"""The training loop learns, averages, validates, refuses bad input, and resumes bitwise."""

import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from kldm.augmentations import AxisPermutations
from kldm.crystals import Crystals, CrystalStore
from kldm.data import Data
from kldm.data.convert import from_structures
from kldm.errors import KldmError
from kldm.interfaces import Samples
from kldm.metrics import MatchRate
from kldm.model import JointModel, NoisedBatch
from kldm.networks import CSPVNet
from kldm.processes import Given, LogTan, TrivializedTorus, VPEuclidean
from kldm.recipe import build, read_recipe
from kldm.runtime.distributed import Lost, world
from kldm.samplers import EulerMaruyama
from kldm.sampling.generation import candidates, generate, requests
from kldm.training import checkpoint as checkpoints
from kldm.training.gradients import Gradients
from kldm.training.learning_rates import Constant, WarmupStableDecay
from kldm.training.loop import Trainer, fit
from kldm.training.settings import Plateau, Training
from tests.mortal import MORTAL
from tests.small import losses, random_store, rows, small_model
from tests.worlds import Threaded, together

STORE = random_store((3, 2, 4, 1, 5))
SETTINGS = Training(epochs=6, batch_size=2, ema_start=2, ema_decay=0.9, validate_every=1, checkpoint_every=2)
STEPS = 3  # per epoch: 5 crystals in batches of 2


def trained(folder: Path, settings: Training = SETTINGS, **options: Any) -> JointModel:
    model = small_model()
    fit(model, options.pop("train", STORE), settings, folder, {"a": 1}, **options)
    return model


def zero(model: JointModel) -> dict[str, float]:
    return {"score": 0.0}


@attrs.define
class Acting:
    """A model whose noising does something at the given call, counted from 1."""

    model: JointModel
    call: int
    act: Callable[[], None]
    calls: int = 0

    def install(self) -> JointModel:
        usual = self.model.noised

        def counted(clean: Crystals, s: Tensor, rng: torch.Generator) -> NoisedBatch:
            self.calls += 1
            if self.calls == self.call:
                self.act()
            return usual(clean, s, rng)

        self.model.noised = counted  # type: ignore[method-assign]
        return self.model


def watched_store() -> tuple[CrystalStore, list[list[int]]]:
    """``STORE``, and a list of the rows that it is asked for, batch by batch."""
    seen: list[list[int]] = []

    class Watched(CrystalStore):
        def batch(self, rows: Any) -> Crystals:
            seen.append(list(rows))
            return super().batch(rows)

    return Watched(STORE.fractional, STORE.species, STORE.lattice, STORE.sizes, STORE.ids), seen


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    trained(folder, validate=zero)
    return folder


def same_weights(first: Path, second: Path) -> bool:
    names = ("last", "best")
    pairs = [
        [checkpoints.load(place / "checkpoints" / f"{name}.safetensors") for place in (first, second)] for name in names
    ]
    return all(
        set(a.tensors) == set(b.tensors) and all(torch.equal(value, b.tensors[key]) for key, value in a.tensors.items())
        for a, b in pairs
    )


def test_one_row_an_epoch(uninterrupted: Path) -> None:
    found = rows(uninterrupted)
    assert [row["epoch"] for row in found] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in found] == [STEPS * epoch for epoch in range(1, 7)]
    for row in found:
        assert row["loss"] == pytest.approx((row["loss_coordinates"] + row["loss_lattice"]) / 2, rel=1e-5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("call", [1, 4, 9, 17])
def test_interrupted_and_resumed_is_bitwise_the_uninterrupted_run(
    uninterrupted: Path, tmp_path: Path, number: signal.Signals, call: int
) -> None:
    before = signal.getsignal(number)
    model = Acting(small_model(), call, lambda: signal.raise_signal(number)).install()
    with pytest.raises(KldmError, match=f"interrupted at step {call} of 18; .*run the same command again"):
        fit(model, STORE, SETTINGS, tmp_path, {"a": 1}, zero)
    assert signal.getsignal(number) is before
    trained(tmp_path, validate=zero)
    assert losses(tmp_path) == losses(uninterrupted)
    assert same_weights(tmp_path, uninterrupted)


def test_interrupted_while_validating(uninterrupted: Path, tmp_path: Path) -> None:
    def interrupting(model: JointModel) -> dict[str, float]:
        signal.raise_signal(signal.SIGINT)
        return {"score": 0.0}

    with pytest.raises(KldmError, match="interrupted at step 3 of 18"):
        trained(tmp_path, validate=interrupting)
    trained(tmp_path, validate=zero)
    assert losses(tmp_path) == losses(uninterrupted)
    assert same_weights(tmp_path, uninterrupted)


def test_a_second_interruption_is_not_held_back(tmp_path: Path) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    # Python's own handler, which a process started in the background with SIGINT ignored does not have.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(Acting(small_model(), 5, twice).install(), STORE, SETTINGS, tmp_path, {})
    finally:
        signal.signal(signal.SIGINT, previous)


@pytest.mark.parametrize("call", [5, 11], ids=["before the first checkpoint", "between checkpoints"])
def test_death_leaves_no_row_twice(uninterrupted: Path, tmp_path: Path, call: int) -> None:
    def die() -> None:
        raise RuntimeError("as if killed")

    with pytest.raises(RuntimeError, match="as if killed"):
        fit(Acting(small_model(), call, die).install(), STORE, SETTINGS, tmp_path, {"a": 1}, zero)
    with (tmp_path / "train.jsonl").open("a") as log:
        log.write('{"epoch": 4, "st')  # a line cut off by the kill
    trained(tmp_path, validate=zero)
    assert losses(tmp_path) == losses(uninterrupted)
    assert same_weights(tmp_path, uninterrupted)


def test_what_ends_one_process_of_two_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads, each with its own share of a gradient; the writer dies in the third epoch, the other one is lost."""
    monkeypatch.setattr(Gradients, "_parallelized", lambda self, batch: self.model)
    models = [small_model(), small_model()]

    def die() -> None:
        raise RuntimeError("as if killed")

    def play(here: Threaded) -> BaseException | None:
        if here.is_writer:
            Acting(models[0], 2 * STEPS + 1, die).install()
        try:
            fit(models[here.rank], STORE, SETTINGS, tmp_path, {"a": 1}, zero)
        except (RuntimeError, KldmError) as error:
            here.die()
            return error
        return None

    writer, other = together(2, play)
    assert isinstance(writer, RuntimeError)
    assert isinstance(other, Lost)
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2]
    assert checkpoints.load(tmp_path / "checkpoints" / "last.safetensors").state["epoch"] == 2
    trained(tmp_path, validate=zero)
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]


MORTAL_RECIPE = """\
[data]
name = "aflow_prototypes"

[model.coordinates]
@processes = "trivialized_torus.v1"

[model.lattice]
@processes = "vp_euclidean.v1"

[model.lattice.codec]
@codecs = "log_tan.v1"

[model.species]
@processes = "given.v1"

[model.network]
@networks = "mortal.v1"

[sampler]
@samplers = "euler_maruyama.v1"

[training]
epochs = 5
batch_size = 64
ema_start = 2
validate_every = 0
checkpoint_every = 2
"""


def test_killed_and_started_again_is_bitwise_the_uninterrupted_run(tmp_path: Path) -> None:
    code, recipe = tmp_path / "mortal.py", tmp_path / "mortal.cfg"
    code.write_text(MORTAL)
    recipe.write_text(MORTAL_RECIPE)
    command = [sys.executable, "-m", "kldm", "train", str(recipe), "--code", str(code), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

    def start(out: str, killed_at: int) -> int:
        return subprocess.run(
            [*command, "--out", str(tmp_path / out)],
            env={**environment, "KILLED": f"0@{killed_at}"},
            capture_output=True,
            check=False,
        ).returncode

    steps = math.ceil(len(Data(name="aflow_prototypes").load("train")) / 64)
    assert start("killed", 3 * steps + 2) == -signal.SIGKILL  # in epoch 4; the checkpoint is of epoch 2
    assert [row["epoch"] for row in rows(tmp_path / "killed")] == [1, 2, 3]
    assert start("killed", 0) == 0
    assert start("whole", 0) == 0
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert [row["epoch"] for row in rows(tmp_path / "killed")] == [1, 2, 3, 4, 5]
    assert same_weights(tmp_path / "killed", tmp_path / "whole")


def test_the_average_starts_on_time_and_decays(tmp_path: Path) -> None:
    """Oracle: the recursion written out, over the weights after every step."""
    history: list[Tensor] = []
    model = small_model()

    def weights() -> Tensor:
        return torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])

    usual = model.noised

    def watched(clean: Crystals, s: Tensor, rng: torch.Generator) -> NoisedBatch:
        history.append(weights())  # before step n, so after step n - 1
        return usual(clean, s, rng)

    model.noised = watched  # type: ignore[method-assign]
    fit(model, STORE, SETTINGS, tmp_path, {})
    last = checkpoints.load(tmp_path / "checkpoints" / "last.safetensors")
    names = [name for name, _ in model.named_parameters()]
    history.append(torch.cat([last.part("model")[name].flatten() for name in names]))
    expected = history[STEPS * 2 + 1]  # the first of the third epoch
    for value in history[STEPS * 2 + 2 :]:
        expected = 0.9 * expected + 0.1 * value
    averaged = torch.cat([last.part("average")[name].flatten() for name in names])
    torch.testing.assert_close(averaged, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights(), averaged, rtol=0, atol=0)  # the model is left with the average
    assert not torch.allclose(averaged, history[-1])


def test_without_average_the_weights_in_training_are_validated_and_kept(tmp_path: Path) -> None:
    seen: list[JointModel] = []

    def remember(model: JointModel) -> dict[str, float]:
        seen.append(model)
        return {"score": 0.0}

    model = trained(tmp_path, attrs.evolve(SETTINGS, ema_start=100), validate=remember)
    assert all(validated is model for validated in seen)
    assert not checkpoints.load(tmp_path / "checkpoints" / "last.safetensors").part("average")


def test_validation_chooses_the_best_checkpoint(tmp_path: Path) -> None:
    scores = iter([0.1, 0.5, 0.5, 0.2, 0.4, 0.3])
    kept: list[dict[str, Tensor]] = []

    def validate(model: JointModel) -> Mapping[str, float]:
        kept.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"score": next(scores), "other": 9.0}

    model = trained(tmp_path, validate=validate)
    best = checkpoints.load(tmp_path / "checkpoints" / "best.safetensors")
    assert (best.state["best"], best.state["best_epoch"], best.state["epoch"]) == (0.5, 2, 2)
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[1][name]), name
    found = rows(tmp_path)
    assert [row["validation"] for row in found] == [0.1, 0.5, 0.5, 0.2, 0.4, 0.3]
    assert {(row["validation_score"], row["validation_other"]) for row in found[:1]} == {(0.1, 9.0)}


def test_validates_every_so_many_epochs_and_at_the_end(tmp_path: Path) -> None:
    trained(tmp_path, attrs.evolve(SETTINGS, epochs=5, validate_every=2), validate=zero)
    assert [row["epoch"] for row in rows(tmp_path) if "validation" in row] == [2, 4, 5]


def test_no_validation_means_the_last_weights(tmp_path: Path) -> None:
    def never(model: JointModel) -> Mapping[str, float]:
        raise AssertionError

    trained(tmp_path, attrs.evolve(SETTINGS, validate_every=0), validate=never)
    last, best = (checkpoints.load(tmp_path / "checkpoints" / f"{name}.safetensors") for name in ("last", "best"))
    assert torch.equal(best.part("average")["network.norm.weight"], last.part("average")["network.norm.weight"])


def test_longer_training_goes_on_from_the_last_checkpoint(uninterrupted: Path, tmp_path: Path) -> None:
    trained(tmp_path, attrs.evolve(SETTINGS, epochs=3), validate=zero)
    trained(tmp_path, validate=zero)
    assert losses(tmp_path) == losses(uninterrupted)


def test_a_loss_that_is_not_finite_is_told_and_the_checkpoint_kept(tmp_path: Path) -> None:
    model = small_model()

    def spoil() -> None:
        with torch.no_grad():
            next(model.parameters()).fill_(math.nan)

    with pytest.raises(KldmError, match=r"loss of epoch 3 is not finite.*training.learning_rate"):
        fit(Acting(model, 8, spoil).install(), STORE, SETTINGS, tmp_path, {"a": 1}, zero)
    last = checkpoints.load(tmp_path / "checkpoints" / "last.safetensors")
    assert last.state["epoch"] == 2
    assert all(value.isfinite().all() for value in last.tensors.values() if value.is_floating_point())
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2]


def test_interrupting_a_training_gone_wrong_keeps_the_good_checkpoint(tmp_path: Path) -> None:
    model = small_model()

    def spoil() -> None:
        with torch.no_grad():
            next(model.parameters()).fill_(math.nan)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KldmError, match="not finite"):
        fit(Acting(model, 8, spoil).install(), STORE, SETTINGS, tmp_path, {"a": 1}, zero)
    last = checkpoints.load(tmp_path / "checkpoints" / "last.safetensors")
    assert all(value.isfinite().all() for value in last.tensors.values() if value.is_floating_point())


def test_data_of_another_size_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, attrs.evolve(SETTINGS, epochs=1))
    with pytest.raises(KldmError, match="trained on 5 crystals, the data now has 2; restore the data"):
        trained(tmp_path, train=random_store((3, 2)))


def test_another_model_in_the_folder_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, attrs.evolve(SETTINGS, epochs=1))
    with pytest.raises(KldmError, match="do not fit the model"):
        fit(small_model(hidden=16), STORE, SETTINGS, tmp_path, {})


def test_clipping_bounds_the_gradient_and_bf16_stays_finite(tmp_path: Path) -> None:
    trained(tmp_path / "bf16", attrs.evolve(SETTINGS, epochs=2, precision="bf16"))
    reduced, full = rows(tmp_path / "bf16"), rows_of_two_epochs(tmp_path / "fp32")
    assert all(math.isfinite(row["loss"]) for row in reduced)
    assert reduced[0]["loss"] != full[0]["loss"]
    assert reduced[0]["loss"] == pytest.approx(full[0]["loss"], rel=0.05)

    norms: list[float] = []
    model = small_model()
    usual = model.noised

    def watched(clean: Crystals, s: Tensor, rng: torch.Generator) -> NoisedBatch:
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        norms.extend([float(torch.cat(gradients).norm())] if gradients else [])
        return usual(clean, s, rng)

    model.noised = watched  # type: ignore[method-assign]
    fit(model, STORE, attrs.evolve(SETTINGS, epochs=2, clip_norm=1e-3), tmp_path / "clipped", {})
    assert norms == pytest.approx([1e-3] * len(norms), rel=1e-3)


def test_clipping_by_value_comes_before_clipping_by_norm(tmp_path: Path) -> None:
    """Oracle: the gradient of the first step without either, clipped by hand."""

    def gradient(folder: str, clip_value: float | None = None, clip_norm: float | None = None) -> Tensor:
        model = small_model()
        seen: list[Tensor] = []

        def keep() -> None:
            seen.append(torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None]))

        clipped = attrs.evolve(SETTINGS, epochs=1, clip_value=clip_value, clip_norm=clip_norm)
        fit(Acting(model, 2, keep).install(), STORE, clipped, tmp_path / folder, {})
        return seen[0]

    free = gradient("free")
    limit = float(free.abs().max()) / 10
    clipped = free.clamp(-limit, limit)
    torch.testing.assert_close(gradient("value", clip_value=limit), clipped)
    norm = float(clipped.norm()) / 2
    torch.testing.assert_close(gradient("both", clip_value=limit, clip_norm=norm), clipped / 2, rtol=1e-4, atol=1e-8)


def test_without_amsgrad_and_weight_decay_it_is_adam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = attrs.evolve(SETTINGS, epochs=3, amsgrad=False)
    trained(tmp_path / "amsgrad", attrs.evolve(SETTINGS, epochs=3))
    trained(tmp_path / "adamw", plain)
    monkeypatch.setattr(torch.optim, "AdamW", torch.optim.Adam)
    trained(tmp_path / "adam", plain)
    assert same_weights(tmp_path / "adamw", tmp_path / "adam")
    assert losses(tmp_path / "adamw") != losses(tmp_path / "amsgrad")


FALLING = attrs.evolve(SETTINGS, epochs=8, plateau=Plateau(factor=0.5, patience=1, minimum=2e-4))


def rates(folder: Path) -> list[float]:
    return [row["learning_rate"] for row in rows(folder)]


def plateau_by_hand(watched: list[float], settings: Training) -> list[float]:
    """The learning rate of every epoch, by the documented rule."""
    assert settings.plateau is not None
    rate, best, bad, found = settings.learning_rate, math.inf, 0, []
    for loss in watched:
        found.append(rate)
        bad = 0 if loss < best * (1 - 1e-4) else bad + 1
        best = loss if bad == 0 else best
        if bad > settings.plateau.patience:
            rate, bad = max(rate * settings.plateau.factor, settings.plateau.minimum), 0
    return found


def test_the_learning_rate_falls_on_a_plateau_and_no_lower_than_its_minimum(tmp_path: Path) -> None:
    trained(tmp_path, attrs.evolve(FALLING, epochs=16))
    found = [row["loss"] for row in rows(tmp_path)]
    assert rates(tmp_path) == pytest.approx(plateau_by_hand(found, FALLING))
    assert rates(tmp_path)[0] == SETTINGS.learning_rate
    assert rates(tmp_path)[-1] == 2e-4


def test_training_follows_the_learning_rate_that_it_tells(tmp_path: Path) -> None:
    """As without a plateau until the learning rate falls, and otherwise from the next epoch on."""
    trained(tmp_path / "falling", FALLING)
    trained(tmp_path / "constant", attrs.evolve(FALLING, plateau=None))
    fallen = next(number for number, rate in enumerate(rates(tmp_path / "falling")) if rate < FALLING.learning_rate)
    falling, constant = ([row["loss"] for row in rows(tmp_path / name)] for name in ("falling", "constant"))
    assert falling[:fallen] == constant[:fallen]
    assert all(left != right for left, right in zip(falling[fallen:], constant[fallen:], strict=True))


def assert_resumes(folder: Path, settings: Training, call: int, signalled: signal.Signals) -> None:
    """A run that is interrupted at this call of the network and goes on repeats the uninterrupted one in ``whole``."""
    model = Acting(small_model(), call, lambda: signal.raise_signal(signalled)).install()
    with pytest.raises(KldmError, match="interrupted"):
        fit(model, STORE, settings, folder / "cut", {"a": 1}, zero)
    trained(folder / "cut", settings, validate=zero)
    assert losses(folder / "cut") == losses(folder / "whole")
    assert same_weights(folder / "cut", folder / "whole")


@pytest.mark.parametrize("call", [2, *range(4, 8 * STEPS, STEPS)])
def test_a_plateau_is_resumed_to_the_bit(tmp_path: Path, call: int) -> None:
    """Interrupted in every epoch: the first, while bad epochs are counted, and after the learning rate fell."""
    trained(tmp_path / "whole", FALLING, validate=zero)
    assert len(set(rates(tmp_path / "whole"))) > 1
    assert_resumes(tmp_path, FALLING, call, signal.SIGINT)


SCHEDULED = attrs.evolve(
    SETTINGS, learning_rate_schedule=WarmupStableDecay(warmup_steps=4, decay=0.5, shape="linear"), times="stratified"
)


def test_the_schedule_rules_the_steps_and_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """18 steps: 4 of warm-up, and the last 9 fall along a line to 0."""
    seen: list[float] = []
    usual = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *arguments: Any) -> Any:
        seen.append(self.param_groups[0]["lr"])
        return usual(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    trained(tmp_path, SCHEDULED)
    expected = [min(1, (step + 1) / 4) * min(1, (18 - step) / 9) for step in range(18)]
    assert [rate / SCHEDULED.learning_rate for rate in seen] == pytest.approx(expected)
    assert rates(tmp_path) == seen[STEPS - 1 :: STEPS]


@pytest.mark.parametrize("call", [2, 8, 12, 14])
def test_a_schedule_is_resumed_to_the_bit(tmp_path: Path, call: int) -> None:
    trained(tmp_path / "whole", SCHEDULED, validate=zero)
    assert_resumes(tmp_path, SCHEDULED, call, signal.SIGTERM)


def test_a_constant_schedule_changes_nothing_but_the_log(uninterrupted: Path, tmp_path: Path) -> None:
    trained(tmp_path, attrs.evolve(SETTINGS, learning_rate_schedule=Constant()), validate=zero)
    assert set(rates(tmp_path)) == {SETTINGS.learning_rate}
    kept = [{key: value for key, value in row.items() if key != "learning_rate"} for row in losses(tmp_path)]
    assert kept == losses(uninterrupted)
    assert same_weights(tmp_path, uninterrupted)


class Clock:
    """Replaces the clock of training by one that advances by ``seconds`` in each step of a process, and only then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
        self.seconds, self.now = seconds, [0.0] * len(seconds)
        monkeypatch.setattr("kldm.training.loop.time", self)
        usual = JointModel.noised

        def noised(model: JointModel, *arguments: Any) -> NoisedBatch:
            self.now[world().rank] += self.seconds[world().rank]
            return usual(model, *arguments)

        monkeypatch.setattr(JointModel, "noised", noised)

    def monotonic(self) -> float:
        return self.now[world().rank]


TIMED = attrs.evolve(
    SETTINGS,
    epochs=100,
    minutes=50 / 60,
    validate_every=10,
    checkpoint_every=50,
    learning_rate_schedule=WarmupStableDecay(decay=1.0, shape="linear"),
)
"""Five steps of 10 seconds: an epoch, and two steps of the next."""


def test_training_ends_and_decays_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, 10.0)
    trained(tmp_path, TIMED, validate=zero)
    found = rows(tmp_path)
    assert [(row["epoch"], row["step"], row["seconds"]) for row in found] == [(1, 3, 30.0), (2, 5, 50.0)]
    assert [row["learning_rate"] / TIMED.learning_rate for row in found] == pytest.approx([0.6, 0.2])
    assert ["validation" in row for row in found] == [False, True]
    last, best = (checkpoints.load(tmp_path / "checkpoints" / f"{name}.safetensors") for name in ("last", "best"))
    assert last.state["step"] == best.state["step"] == 5
    assert (best.state["best_epoch"], best.state["seconds"]) == (2, 50.0)
    before = losses(tmp_path)
    trained(tmp_path, TIMED, validate=zero)  # there is nothing left to do
    assert losses(tmp_path) == before


@pytest.mark.parametrize("call", [1, 3, 4])
def test_time_goes_on_in_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    Clock(monkeypatch, 10.0)
    trained(tmp_path / "whole", TIMED, validate=zero)
    model = Acting(small_model(), call, lambda: signal.raise_signal(signal.SIGTERM)).install()
    with pytest.raises(KldmError, match=f"interrupted at step {call}, after 0.[0-9] of 0.833333 minutes; a checkpoint"):
        fit(model, STORE, TIMED, tmp_path / "cut", {"a": 1}, zero)
    trained(tmp_path / "cut", TIMED, validate=zero)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert same_weights(tmp_path / "cut", tmp_path / "whole")


def test_epochs_bound_training_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The learning rate decays with the minutes."""
    Clock(monkeypatch, 1.0)
    trained(tmp_path, attrs.evolve(TIMED, epochs=2))
    assert [row["step"] for row in rows(tmp_path)] == [3, 6]
    assert [rate / TIMED.learning_rate for rate in rates(tmp_path)] == pytest.approx([4 / 6, 1 / 6])


def test_more_time_goes_on_in_the_midst_of_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row is the mean of its own steps."""
    Clock(monkeypatch, 10.0)
    constant = attrs.evolve(TIMED, learning_rate_schedule=None)
    trained(tmp_path / "timed", constant)
    trained(tmp_path / "timed", attrs.evolve(constant, minutes=80 / 60))
    trained(tmp_path / "whole", attrs.evolve(constant, minutes=None, epochs=2))
    found = rows(tmp_path / "timed")
    assert [(row["epoch"], row["step"]) for row in found] == [(1, 3), (2, 5), (2, 6), (3, 8)]
    second = rows(tmp_path / "whole")[1]["loss"]
    assert (2 * found[1]["loss"] + found[2]["loss"]) / 3 == pytest.approx(second, rel=1e-5)


def test_all_processes_go_by_the_writers_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which they hear of in the next step; the other one's would end training after two steps."""
    monkeypatch.setattr(Gradients, "_parallelized", lambda self, batch: self.model)
    Clock(monkeypatch, 10.0, 25.0)
    models = [small_model(), small_model()]
    rates: list[list[float]] = [[], []]
    usual = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *arguments: Any) -> Any:
        rates[world().rank].append(self.param_groups[0]["lr"])
        return usual(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    together(2, lambda here: fit(models[here.rank], STORE, TIMED, tmp_path, {"a": 1}))
    assert [(row["epoch"], row["step"]) for row in rows(tmp_path)] == [(1, 3), (2, 6)]
    shares = [0.0, 0.0, 0.2, 0.4, 0.6, 0.8]  # of the time, as heard
    assert rates[0] == rates[1] == pytest.approx([(1 - share) * TIMED.learning_rate for share in shares], rel=1e-2)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose best weights are not its last."""
    folder = tmp_path_factory.mktemp("trunk")
    scores = iter([0.1, 0.2, 0.3, 0.9, 0.1, 0.1])
    trained(folder, validate=lambda model: {"score": next(scores)})
    return folder


def started(folder: Path, model: JointModel, **changes: Any) -> Trainer:
    """A trainer before its first step."""
    return Trainer(model, STORE, attrs.evolve(SETTINGS, ema_start=100, **changes), folder, {})


def same(module: JointModel, weights: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, weights[name].to(value.dtype)) for name, value in module.state_dict().items())


def test_a_start_from_weights_takes_those_that_are_sampled_with(trunk: Path, tmp_path: Path) -> None:
    best = checkpoints.load(trunk / "checkpoints" / "best.safetensors")
    shared = tmp_path / "weights" / "model.safetensors"
    shared.parent.mkdir()
    checkpoints.save(shared, best.to_share("fp16"))
    for number, (start, weights) in enumerate(
        [
            (trunk, best.part("average")),
            (trunk / "checkpoints" / "best.safetensors", best.part("average")),
            (shared, best.to_share("fp16").part("model")),
            (shared.parent, best.to_share("fp16").part("model")),
        ]
    ):
        trainer = started(tmp_path / str(number), small_model(seed=7), start_from=start)
        assert same(trainer.model, weights)
        assert not trainer.state.optimizer.state
        assert (trainer.state.average.updates, trainer.state.progress.step) == (0, 0)


def test_a_start_from_a_state_takes_all_of_it(trunk: Path, tmp_path: Path) -> None:
    last = checkpoints.load(trunk / "checkpoints" / "last.safetensors")
    trainer = started(tmp_path, small_model(seed=7), start_from=trunk, start_with="state", learning_rate=0.5)
    assert same(trainer.model, last.part("model"))
    assert same(trainer.state.average.module, last.part("average"))
    taken = checkpoints.optimizer_tensors(trainer.state.optimizer)
    assert taken
    assert all(torch.equal(value, last.tensors[name]) for name, value in taken.items())
    assert (trainer.state.progress.step, trainer.state.learning_rate) == (0, 0.5)
    trainer.run(None)  # the average goes on in the first step, long before ema_start
    assert trainer.state.average.updates == last.state["averaged"] + 6 * STEPS


def test_a_branch_ends_near_its_start_where_the_learning_rate_is_gone(trunk: Path, tmp_path: Path) -> None:
    """The branch is also resumed bitwise after the trunk was deleted."""
    place = tmp_path / "trunk"
    shutil.copytree(trunk, place)
    decay = WarmupStableDecay(decay=1.0)
    branch = attrs.evolve(SETTINGS, start_from=place, start_with="state", learning_rate_schedule=decay)
    trained(tmp_path / "whole", branch, validate=zero)
    assert rates(tmp_path / "whole")[-1] < 0.05 * SETTINGS.learning_rate
    model = Acting(small_model(), 8, lambda: signal.raise_signal(signal.SIGTERM)).install()
    with pytest.raises(KldmError, match="interrupted"):
        fit(model, STORE, branch, tmp_path / "cut", {"a": 1}, zero)
    shutil.rmtree(place)
    trained(tmp_path / "cut", branch, validate=zero)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert same_weights(tmp_path / "cut", tmp_path / "whole")
    with pytest.raises(KldmError, match=r"trunk: no checkpoint here; name a run folder, a folder"):
        trained(tmp_path / "new", branch)


def test_a_start_that_does_not_fit_is_refused(trunk: Path, tmp_path: Path) -> None:
    with pytest.raises(KldmError, match=r"best\.safetensors: the weights do not fit the model; give training\.start_"):
        started(tmp_path / "large", small_model(hidden=16), start_from=trunk)
    best = trunk / "checkpoints" / "best.safetensors"
    with pytest.raises(KldmError, match=r'holds weights alone.* set training\.start_with = "weights"'):
        started(tmp_path / "weights", small_model(), start_from=best, start_with="state")
    trained(tmp_path / "plain", attrs.evolve(SETTINGS, amsgrad=False))
    with pytest.raises(KldmError, match=r"not kept what amsgrad needs; set training\.amsgrad = false"):
        started(tmp_path / "amsgrad", small_model(), start_from=tmp_path / "plain", start_with="state")


def test_plateau_and_schedule_are_refused_together() -> None:
    with pytest.raises(KldmError, match=r"plateau: cannot rule .*; leave out training\.plateau or"):
        Training(plateau=Plateau(), learning_rate_schedule=Constant())


def test_whole_batches_leave_other_crystals_out_in_every_epoch(tmp_path: Path) -> None:
    store, seen = watched_store()
    settings = attrs.evolve(SETTINGS, whole_batches=True)
    trained(tmp_path, settings, train=store)
    assert [len(batch) for batch in seen] == [2] * 12
    epochs = [{*first, *second} for first, second in zip(seen[::2], seen[1::2], strict=True)]
    assert all(len(epoch) == 4 for epoch in epochs)
    assert len({tuple(sorted(epoch)) for epoch in epochs}) > 1
    assert [row["step"] for row in rows(tmp_path)] == [2, 4, 6, 8, 10, 12]


def test_a_batch_that_no_data_fills_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KldmError, match=r"training\.whole_batches: 5 crystals fill no batch of 6; lower"):
        trained(tmp_path, attrs.evolve(SETTINGS, whole_batches=True, batch_size=6))


def test_batches_see_the_times_asked_for(tmp_path: Path) -> None:
    seen: list[Tensor] = []
    model = small_model()
    usual = model.noised

    def watched(clean: Crystals, s: Tensor, rng: torch.Generator) -> NoisedBatch:
        seen.append(s)
        return usual(clean, s, rng)

    model.noised = watched  # type: ignore[method-assign]
    density = (1e-6, 1e-6, 1.0, 1e-6)
    fit(model, STORE, attrs.evolve(SETTINGS, times="stratified", time_density=density), tmp_path, {})
    assert all(((s > 0.499) & (s < 0.751)).all() for s in seen)
    assert all(s[0] > 0.62 > s[1] for s in seen if len(s) == 2)


def test_the_average_warms_up(tmp_path: Path) -> None:
    settings = attrs.evolve(SETTINGS, ema_start=0, ema_decay=0.999999)
    trained(tmp_path / "cold", settings)
    trained(tmp_path / "warm", attrs.evolve(settings, ema_warmup=True))

    def distance(folder: Path) -> float:
        last = checkpoints.load(folder / "checkpoints" / "last.safetensors")
        average = last.part("average")
        return sum(float((value - average[name]).norm()) for name, value in last.part("model").items())

    assert distance(tmp_path / "warm") < 0.5 * distance(tmp_path / "cold")


def test_without_a_plateau_no_learning_rate_is_logged(uninterrupted: Path) -> None:
    assert all("learning_rate" not in row for row in rows(uninterrupted))


@attrs.frozen
class Nudge:
    """Moves every crystal by a random step, and keeps its arguments and results."""

    seen: list[tuple[Crystals, Crystals]] = attrs.field(factory=list)

    def augmented(self, crystals: Crystals, rng: torch.Generator) -> Crystals:
        step = torch.rand(3, generator=rng)
        made = attrs.evolve(crystals, fractional=(crystals.fractional + step) % 1)
        self.seen.append((crystals, made))
        return made


def test_every_batch_is_augmented_anew_before_its_noise(tmp_path: Path) -> None:
    nudge, model, noised = Nudge(), small_model(), []
    usual = model.noised

    def watched(clean: Crystals, s: Tensor, rng: torch.Generator) -> NoisedBatch:
        noised.append(clean)
        return usual(clean, s, rng)

    model.noised = watched  # type: ignore[method-assign]
    fit(model, STORE, attrs.evolve(SETTINGS, epochs=2, augmentation=nudge), tmp_path, {})
    assert len(noised) == 2 * STEPS
    assert all(clean is nudged for clean, (_, nudged) in zip(noised, nudge.seen, strict=True))
    steps = [(made.fractional - given.fractional)[0] % 1 for given, made in nudge.seen]
    assert len({tuple(step.tolist()) for step in steps}) == 2 * STEPS


def test_augmentation_is_resumed_to_the_bit(tmp_path: Path) -> None:
    settings = attrs.evolve(SETTINGS, augmentation=AxisPermutations())
    trained(tmp_path / "whole", settings, validate=zero)
    model = Acting(small_model(), 8, lambda: signal.raise_signal(signal.SIGINT)).install()
    with pytest.raises(KldmError, match="interrupted"):
        fit(model, STORE, settings, tmp_path / "cut", {"a": 1}, zero)
    trained(tmp_path / "cut", settings, validate=zero)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert same_weights(tmp_path / "cut", tmp_path / "whole")


def test_plateau_and_augmentation_are_sections_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.cfg").write_text(
        "[training]\namsgrad = false\nclip_value = 0.5\n\n[training.plateau]\nfactor = 0.7\n\n"
        '[training.augmentation]\n@augmentations = "axis_permutations.v1"\n'
    )
    tree = read_recipe(tmp_path / "recipe.cfg", {"training.plateau.patience": 5})["training"]
    built, complete = build(tree, Training)
    assert built == Training(
        amsgrad=False, clip_value=0.5, plateau=Plateau(factor=0.7, patience=5), augmentation=AxisPermutations()
    )
    assert complete["plateau"] == {"factor": 0.7, "patience": 5, "minimum": 1e-4}
    assert build(complete, Training) == (built, complete)
    with pytest.raises(KldmError, match=r"plateau\.patiense: unknown key; did you mean 'patience'"):
        build({"plateau": {"patiense": 3}}, Training)
    with pytest.raises(KldmError, match=r"plateau\.factor: must be between"):
        build({"plateau": {"factor": 2.0}}, Training)


def test_schedule_times_and_start_are_written_in_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.cfg").write_text(
        '[training]\ntimes = "stratified"\ntime_density = [2, 1.5]\nminutes = 10\nstart_from = "runs/trunk"\n\n'
        '[training.learning_rate_schedule]\n@learning_rates = "warmup_stable_decay.v1"\ndecay = 1\n'
    )
    built, complete = build(read_recipe(tmp_path / "recipe.cfg")["training"], Training)
    assert built == Training(
        times="stratified",
        time_density=(2.0, 1.5),
        minutes=10.0,
        start_from=Path("runs/trunk"),
        learning_rate_schedule=WarmupStableDecay(decay=1.0),
    )
    assert (complete["start_from"], complete["start_with"]) == ("runs/trunk", "weights")
    assert build(complete, Training) == (built, complete)


def rows_of_two_epochs(folder: Path) -> list[dict[str, Any]]:
    trained(folder, attrs.evolve(SETTINGS, epochs=2, precision="fp32"))
    return rows(folder)


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": -1.0},
        {"weight_decay": -0.1},
        {"ema_decay": 1.0},
        {"ema_start": -1},
        {"s_min": 0.0},
        {"s_min": 1.0},
        {"clip_norm": 0.0},
        {"clip_value": 0.0},
        {"clip_value": math.nan},
        {"precision": "fp64"},
        {"validate_every": -1},
        {"checkpoint_every": 0},
        {"minutes": 0.0},
        {"start_with": "everything"},
        {"times": "sorted"},
        {"time_density": ()},
        {"time_density": (1.0, 0.0)},
        {"time_density": (1.0, math.inf)},
    ],
    ids=str,
)
def test_impossible_settings(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(KldmError, match=rf"{name}(\.\d)?: must be"):
        Training(**options)


@pytest.mark.parametrize("options", [{"factor": 1.0}, {"factor": 0.0}, {"patience": -1}, {"minimum": -1e-5}], ids=str)
def test_impossible_plateaus(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(KldmError, match=f"{name}: must be"):
        Plateau(**options)


def test_a_plateau_above_the_learning_rate_is_refused() -> None:
    with pytest.raises(KldmError, match=r"plateau\.minimum: must be at most the learning_rate of 0\.001, got 0\.01"):
        Training(plateau=Plateau(minimum=1e-2))


def test_every_crystal_once_an_epoch_in_a_new_order_each_time(tmp_path: Path) -> None:
    store, seen = watched_store()
    trained(tmp_path, attrs.evolve(SETTINGS, epochs=2), train=store)
    first, second = ([row for batch in seen[start : start + STEPS] for row in batch] for start in (0, STEPS))
    assert sorted(first) == sorted(second) == [0, 1, 2, 3, 4]
    assert first != second


def test_learns_one_crystal_and_samples_it(tmp_path: Path) -> None:
    """With CsCl many times per batch the loss falls, and the samples are CsCl, which chance would not give."""
    from pymatgen.core.lattice import Lattice
    from pymatgen.core.structure import Structure

    truth = Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
    store = from_structures([truth] * 64)
    torch.manual_seed(0)
    model = JointModel(
        coordinates=TrivializedTorus(),
        lattice=VPEuclidean(codec=LogTan().fitted(store)),
        species=Given(),
        network=partial(CSPVNet, hidden=32, layers=2, frequencies=8, time_features=16),
    )

    def matched() -> int:
        wanted = requests(1, 8)
        made = generate(model, EulerMaruyama(steps=100), store.subset([0]), wanted, seed=0, max_pairs=1000)
        judged = MatchRate().measure(Samples(candidates(made, wanted), (truth,)))
        return sum(row["rms"] is not None and row["rms"] < 0.05 for row in judged.rows)

    assert matched() <= 1
    settings = Training(
        epochs=300, batch_size=64, learning_rate=5e-3, ema_start=150, ema_decay=0.98, checkpoint_every=300
    )
    fit(model, store, settings, tmp_path, {})
    found = [row["loss"] for row in rows(tmp_path)]
    assert sum(found[-20:]) < 0.25 * sum(found[:20])
    assert matched() >= 6
