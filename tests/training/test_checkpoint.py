"""Checkpoints: what is saved is loaded again; broken, foreign and missing files are reported in a sentence."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kldm.errors import KldmError
from kldm.training import checkpoint as checkpoints
from kldm.training.checkpoint import Checkpoint, load, load_optimizer, optimizer_tensors, save
from tests.small import random_store, small_model

RECIPE = {"data": {"name": "mp_20", "root": None}, "list": [1, 2.5, "ä", True]}
STATE = {"step": 7, "best": None, "seconds": 0.1 + 0.2}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints" / "last.safetensors"
    tensors = {"model.a": torch.randn(3, 2), "model.b.c": torch.arange(3), "average.a": torch.ones(2).bfloat16()}
    save(path, Checkpoint(RECIPE, tensors, STATE))
    return path


def test_round_trip(tmp_path: Path) -> None:
    tensors = {
        "model.a": torch.randn(2, 3).T,  # not contiguous
        "model.b": torch.arange(3),
        "average.c": torch.randn(2).bfloat16(),
        "sums.loss": torch.tensor(1.5),
    }
    save(tmp_path / "x.safetensors", Checkpoint(RECIPE, tensors, STATE))
    found = load(tmp_path / "x.safetensors")
    assert (found.recipe, found.state) == (RECIPE, STATE)
    assert set(found.tensors) == set(tensors)
    for name, value in tensors.items():
        assert found.tensors[name].dtype == value.dtype
        assert torch.equal(found.tensors[name], value)
    assert set(found.part("model")) == {"a", "b"}


def test_others_may_read_it_like_any_new_file(file: Path) -> None:
    plain = file.with_name("plain")
    plain.touch()
    assert file.stat().st_mode == plain.stat().st_mode


def test_what_is_shared_are_the_weights_that_sampling_takes() -> None:
    weights = {"model.a": torch.zeros(2), "average.a": torch.tensor([1 / 3, 1e-3]), "average.count": torch.tensor(7)}
    record = Checkpoint(RECIPE, {**weights, "optimizer.0.step": torch.ones(1)}, STATE)
    for rounding, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        shared = record.to_share(rounding)  # type: ignore[arg-type]  # mypy takes the names for any text
        assert (shared.recipe, shared.state) == (RECIPE, STATE)
        assert set(shared.tensors) == {"model.a", "model.count"}
        assert shared.weights["a"].dtype == dtype
        torch.testing.assert_close(shared.weights["a"].float(), weights["average.a"], rtol=4e-3, atol=0)
        assert shared.weights["count"].item() == 7
    large = Checkpoint(RECIPE, {"model.a": torch.tensor([1e5])}, STATE)
    with pytest.raises(KldmError, match="a holds a number that is too large for fp16; take bf16 or fp32"):
        large.to_share("fp16")
    with pytest.raises(KldmError, match="a holds a number that is not finite; take an older checkpoint"):
        Checkpoint(RECIPE, {"model.a": torch.tensor([torch.nan])}, STATE).to_share("fp32")
    assert large.to_share("bf16").weights["a"].item() == pytest.approx(1e5, rel=4e-3)


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    weight = torch.randn(4)
    save(tmp_path / "x.safetensors", Checkpoint({}, {"model.a": weight, "model.b": weight}, {}))
    assert torch.equal(load(tmp_path / "x.safetensors").tensors["model.b"], weight)


def test_the_optimiser_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Two optimisers, one of which is saved and loaded half-way, must make bitwise the same steps."""
    weights = []
    for interrupted in (False, True):
        model, batch = small_model(), random_store((3, 2)).batch([0, 1])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, amsgrad=True)
        for step in range(6):
            if interrupted and step == 3:
                tensors = {**optimizer_tensors(optimizer), "model.x": torch.ones(1)}
                save(tmp_path / "x.safetensors", Checkpoint({}, tensors, {}))
                optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, amsgrad=True)
                load_optimizer(optimizer, load(tmp_path / "x.safetensors").part("optimizer"))
            optimizer.zero_grad()
            rng = torch.Generator().manual_seed(step)
            model.total(model.losses(batch, torch.full((2,), 0.5), rng)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        weights.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
    assert torch.equal(weights[0], weights[1])


def test_averaged_weights_are_preferred_and_must_fit(tmp_path: Path) -> None:
    model, other = small_model(seed=0), small_model(seed=1)
    plain = {f"model.{name}": value for name, value in model.state_dict().items()}
    average = {f"average.{name}": value for name, value in other.state_dict().items()}
    for tensors, expected in ((plain, model), ({**plain, **average}, other)):
        rebuilt = small_model(seed=2)
        Checkpoint({}, tensors, {}).load_weights(rebuilt)
        for name, value in expected.state_dict().items():
            assert torch.equal(rebuilt.state_dict()[name], value)
    with pytest.raises(KldmError, match="the weights do not fit the model of its recipe"):
        Checkpoint({}, plain, {}).load_weights(small_model(hidden=16))


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _header_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def _garbage(path: Path) -> None:
    path.write_bytes(b"\xff" * 1000)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _not_json(path: Path) -> None:
    save_file({"a": torch.ones(1)}, path, {"format": "1", "recipe": "{", "state": "{}"})


def _no_recipe(path: Path) -> None:
    save_file({"a": torch.ones(1)}, path, {"format": "1"})


def _foreign(path: Path) -> None:
    save_file({"a": torch.ones(1)}, path)


def _later(path: Path) -> None:
    save_file({"a": torch.ones(1)}, path, {"format": "999", "recipe": "{}", "state": "{}"})


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_truncated, "the file is broken"),
        (_header_cut, "the file is broken"),
        (_garbage, "the file is broken"),
        (_empty, "the file is broken"),
        (_not_json, "the file is broken"),
        (_no_recipe, "the file is broken"),
        (_foreign, "not a checkpoint of kldm"),
        (_later, "format 999 is not format 2"),
        (_folder, "no such checkpoint"),
        (Path.unlink, "no such checkpoint"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_no_checkpoint_is_told_in_a_sentence(file: Path, harm: Any, message: str) -> None:
    load(file)
    harm(file)
    with pytest.raises(KldmError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "failure",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")],
    ids=["OSError", "SafetensorError"],
)
def test_a_full_disk_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    before = file.read_bytes()

    def half(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise failure

    monkeypatch.setattr(checkpoints, "save_file", half)
    with pytest.raises(KldmError, match=r"last.safetensors: cannot write the file: .*No space left on device"):
        save(file, Checkpoint({}, {}, {}))
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_nothing_is_unpickled(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is safetensors: a JSON header and raw bytes; and loading works where pickle does not."""
    import pickle

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch, "save", refuse)
    record = load(file)
    save(file, record)
    with safe_open(file, framework="pt") as opened:
        assert json.loads(opened.metadata()["recipe"]) == RECIPE


def test_what_is_shared_does_not_say_where_its_training_started() -> None:
    recipe = {**RECIPE, "training": {"epochs": 3, "start_from": "/home/me/runs/trunk", "start_with": "state"}}
    record = Checkpoint(recipe, {"model.a": torch.ones(2)}, STATE)
    assert record.to_share().recipe == {**RECIPE, "training": {"epochs": 3}}
    assert record.recipe == recipe


def test_every_flipped_bit_is_refused(file: Path) -> None:
    raw = file.read_bytes()
    for position in range(0, 8 * len(raw), 7):  # every byte, and each bit in turn
        changed = bytearray(raw)
        changed[position // 8] ^= 1 << position % 8
        file.write_bytes(changed)
        with pytest.raises(KldmError):
            load(file)
    file.write_bytes(raw)
    assert load(file).state == STATE


def test_a_checkpoint_without_a_checksum_is_read_if_it_is_an_older_one(file: Path) -> None:
    with safe_open(file, framework="pt") as opened:
        header, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    del header["checksum"]
    save_file(tensors, file, header)
    with pytest.raises(KldmError, match="its header lacks 'checksum'"):
        load(file)
    save_file(tensors, file, header | {"format": "1"})
    assert load(file).recipe == RECIPE


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a Git LFS pointer, .*; run git lfs pull"),
        (b"<!DOCTYPE html><html>403 Forbidden</html>", "is a web page, not a checkpoint; download the file itself"),
        (b"PK\x03\x04 data.pkl", "is a zip, as torch.save writes"),
        (b"\x80\x02}", "is a pickle"),
    ],
)
def test_other_files_are_called_what_they_are(file: Path, content: bytes, told: str) -> None:
    file.write_bytes(content)
    with pytest.raises(KldmError, match=told):
        load(file)


def test_weights_that_are_not_finite_are_not_sampled_with() -> None:
    model = small_model()
    tensors = {f"model.{name}": torch.full_like(value, torch.nan) for name, value in model.state_dict().items()}
    with pytest.raises(KldmError, match="holds a number that is not finite"):
        Checkpoint({}, tensors, {}).load_weights(model)


def test_tensors_that_no_checkpoint_has_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "extra.safetensors"
    save_file({"extra.weight": torch.zeros(3)}, path, metadata={"format": "1", "recipe": "{}", "state": "{}"})
    with pytest.raises(KldmError, match=r"extra.safetensors: .*no checkpoint has a tensor 'extra.weight'"):
        load(path)
