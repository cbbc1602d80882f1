"""MatterSim with weights of the tests, where it is installed; what it says where it is not, or has none."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import ase
import pytest
import torch

from kldm.errors import KldmError
from kldm.metrics.relaxing.relaxation import Relaxation, relaxed
from kldm.potentials import CHGNet, MatterSim
from kldm.potentials import packages as packages_module
from tests.metals import fcc
from tests.potentials.weights import tiny_weights

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return tiny_weights(tmp_path / "tiny.pth")


def salt() -> Any:
    return ase.Atoms("NaCl", scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5]], cell=[4.0] * 3, pbc=True)


def test_weights_of_a_file_are_used(weights: Path) -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        atoms = salt()
        atoms.calc = MatterSim(weights=weights, device="cpu").calculator()
        first = float(atoms.get_potential_energy())
        assert torch.backends.cuda.matmul.allow_tf32, "a model in training keeps its precision"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert atoms.get_forces().shape == (2, 3)
    content = torch.load(weights, weights_only=True)
    content["model"] = {name: value * 1.5 for name, value in content["model"].items()}
    torch.save(content, weights)
    other = salt()
    other.calc = MatterSim(weights=weights, device="cpu").calculator()
    assert abs(float(other.get_potential_energy()) - first) > 1e-6


def test_the_identity_is_of_the_bytes(weights: Path) -> None:
    potential = MatterSim(weights=weights)
    before = dict(potential.identity)
    assert potential.label == "tiny.pth"
    assert dict(MatterSim(weights=weights.rename(weights.with_name("other.pth"))).identity) == before, "of any name"
    weights.with_name("other.pth").rename(weights)
    assert dict(MatterSim(weights=weights, device="cpu").identity) == before, "wherever it computes"
    weights.write_bytes(weights.read_bytes() + b" ")
    assert potential.identity["sha256"] != before["sha256"]


@pytest.mark.parametrize("broken", ["bytes", "another", "no_args", "a_weight_less", "another_shape"])
def test_other_files_are_refused(weights: Path, broken: str) -> None:
    content = torch.load(weights, weights_only=True)
    if broken == "bytes":
        weights.write_bytes(b"not a file of torch.save")
    elif broken == "another":
        torch.save({"model_name": "graphormer"}, weights)
    elif broken == "no_args":
        torch.save({"model_name": "m3gnet", "model": {}}, weights)
    elif broken == "a_weight_less":
        content["model"].pop(next(name for name in content["model"] if name.endswith("weight")))
        torch.save(content, weights)
    else:
        name = next(name for name in content["model"] if name.endswith("weight"))
        content["model"][name] = torch.zeros(3)
        torch.save(content, weights)
    with pytest.raises(KldmError, match=r"tiny\.pth: the file does not hold weights of MatterSim's M3GNet"):
        MatterSim(weights=weights, device="cpu").calculator()


def test_changed_weights_are_loaded_again(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KLDM_CACHE", str(tmp_path / "cache"))
    potential, structure = MatterSim(weights=weights, device="cpu"), fcc("Cu", 3.7)
    first = relaxed([structure], potential, Relaxation(max_steps=0))[0].energy
    content = torch.load(weights, weights_only=True)
    content["model"] = {name: value * 1.5 for name, value in content["model"].items()}
    torch.save(content, weights)
    assert abs(relaxed([structure], potential, Relaxation(max_steps=0))[0].energy - first) > 1e-6


@pytest.mark.parametrize("device", ["nonsense", pytest.param("cuda", marks=needs_no_gpu)])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(KldmError, match=rf"some\.v1: its device {device} is not usable here \(.*\); leave it out"):
        packages_module.usual_device(device, "some.v1")


def test_weights_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for potential in (MatterSim(), MatterSim(weights=tmp_path / "none.pth")):
        with pytest.raises(KldmError, match=r"there are no weights .*\.pth; download mattersim-v1\.0\.0-1M\.pth"):
            _ = potential.identity
    assert not (tmp_path / ".local").exists(), "nothing is downloaded, and no folder is made"


@pytest.mark.parametrize("potential", [MatterSim(), CHGNet()], ids=["mattersim", "chgnet"])
def test_packages_that_are_not_there(potential: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(packages_module, "version", missing)
    name = type(potential).__name__.lower()
    with pytest.raises(KldmError, match=rf"{name}\.v1: the package {name} is not installed; pip install"):
        potential.calculator()


def test_a_torchvision_that_does_not_fit_has_a_remedy() -> None:
    reason = RuntimeError("operator torchvision::nms does not exist")
    error = packages_module.unusable("mattersim", "mattersim.v1", reason)
    assert str(error) == (
        "mattersim.v1: the package mattersim cannot be imported (operator torchvision::nms does not exist); its "
        "torchvision does not fit this torch and is not needed: pip uninstall torchvision torchaudio"
    )
