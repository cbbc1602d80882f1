"""What precisions come to on a device, and that training in bfloat16 is training."""

import platform
from functools import partial

import pytest
import torch

from kldm.data import Data
from kldm.execution import Precision, bfloat16_unit, used_precision
from kldm.model import JointModel
from kldm.networks import CSPVNet
from kldm.processes import Given, LogTan, TrivializedTorus, VPEuclidean
from kldm.training import set_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def forgetful() -> None:
    bfloat16_unit.cache_clear()


@pytest.mark.parametrize(("amx", "avx512", "expected"), [(1, 1, "AMX"), (0, 1, "AVX512-BF16"), (0, 0, None)])
def test_auto_on_a_cpu(amx: int, avx512: int, expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx512))
    assert bfloat16_unit(CPU) == expected
    assert used_precision("auto", CPU) == ("bf16" if expected else "fp32")


def test_auto_without_onednn_or_a_way_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    with monkeypatch.context() as context:
        context.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert used_precision("auto", CPU) == "fp32"
    bfloat16_unit.cache_clear()
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name)
    assert used_precision("auto", CPU) == "fp32"


@pytest.mark.parametrize(("asked", "used"), [("fp32", "fp32"), ("tf32", "fp32"), ("bf16", "bf16")])
def test_what_is_asked_for_on_a_cpu(asked: Precision, used: str) -> None:
    assert used_precision(asked, CPU) == used


@pytest.mark.parametrize(("capability", "used"), [((7, 5), "fp32"), ((8, 0), "tf32"), ((9, 0), "tf32")])
def test_tf32_on_a_gpu(capability: tuple[int, int], used: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert used_precision("tf32", GPU) == used
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert used_precision("tf32", GPU) == "fp32"


def test_other_devices_compute_in_float32() -> None:
    assert used_precision("auto", torch.device("mps")) == "fp32"


def losses(precision: Precision) -> torch.Tensor:
    """Of 300 steps on prototypes of crystal structures, with the same batches, times and noise every time."""
    torch.manual_seed(0)
    model = JointModel(
        coordinates=TrivializedTorus(),
        lattice=VPEuclidean(codec=LogTan(standardise=False)),
        species=Given(),
        network=partial(CSPVNet, hidden=64, layers=3, frequencies=16, time_features=32),
    )
    set_precision(model, precision)
    optimizer = torch.optim.AdamW(model.parameters(), amsgrad=True)
    train, rng = Data(name="aflow_prototypes").load("train"), torch.Generator().manual_seed(0)
    train = train.subset([row for row, size in enumerate(train.sizes) if size <= 8])
    found = []
    for _ in range(300):
        clean = train.batch(torch.randperm(len(train), generator=rng)[:16].tolist())
        loss = model.total(model.losses(clean, 1 - 0.999 * torch.rand(16, generator=rng), rng))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found)


@pytest.mark.slow
def test_training_in_bfloat16_has_the_losses_of_float32() -> None:
    exact, rounded = losses("fp32"), losses("bf16")
    assert not torch.equal(exact, rounded)
    assert exact[-100:].mean() < 0.8 * exact[:10].mean(), "something was learnt"
    for part in (slice(None), slice(-100, None)):
        assert rounded[part].mean().item() == pytest.approx(exact[part].mean().item(), rel=1e-3)
