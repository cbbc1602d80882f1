"""What precisions come to on a device."""

import platform

import pytest
import torch

from kldm.precision import Precision, multiplies_bfloat16, used_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def forgetful() -> None:
    multiplies_bfloat16.cache_clear()


@pytest.mark.parametrize(("amx", "avx512", "expected"), [(1, 0, "bf16"), (0, 1, "bf16"), (0, 0, "fp32")])
def test_auto_on_a_cpu(amx: int, avx512: int, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx512))
    assert used_precision("auto", CPU) == expected


def test_auto_without_onednn_or_a_way_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    with monkeypatch.context() as context:
        context.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert used_precision("auto", CPU) == "fp32"
    multiplies_bfloat16.cache_clear()
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
