"""Checkpoints: recipe, tensors and counters of a model in training, in one safetensors file.

Loading executes nothing: tensors are raw bytes, and all the rest is JSON in the header of the file.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kldm.errors import KldmError, printable
from kldm.runtime.files import atomic_write
from kldm.runtime.opening import in_place_of

_FORMATS = ("1", "2")
"""Formats that can be read; the last one is written. The first has no checksum."""

_PARTS = ("model", "average", "optimizer", "sums")
"""What the names of tensors begin with."""

_STARTS = ("start_from", "start_with")

Rounding = Literal["fp32", "fp16", "bf16"]
"""The type in which exported weights are stored."""

StartWith = Literal["weights", "state"]
"""The part of another run's checkpoint that training starts with."""

_ROUNDED: Mapping[Rounding, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@attrs.frozen(eq=False)
class Checkpoint:
    """Everything that is needed to resume training or to sample.

    Attributes:
        recipe: the complete recipe, fitted statistics included, from which the model is rebuilt.
        tensors: by name; ``model.*`` are the weights in training, ``average.*`` their moving average (absent
            before it starts), ``optimizer.*`` the optimiser's state.
        state: counters of the training loop, JSON.
    """

    recipe: dict[str, Any]
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with ``prefix.``, by the rest of their names."""
        return {name.removeprefix(f"{prefix}."): t for name, t in self.tensors.items() if name.startswith(f"{prefix}.")}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The averaged weights, or the weights in training if there is no average yet."""
        return self.part("average") or self.part("model")

    @property
    def size(self) -> int:
        """The number of numbers that the weights are made of."""
        return sum(weight.numel() for weight in self.weights.values())

    def to_share(self, rounding: Rounding = "fp16") -> "Checkpoint":
        """A checkpoint to publish: the rounded weights for sampling, the recipe and the counters.

        The recipe loses the checkpoint that training started from, which is a path on the machine that trained.

        Raises:
            KldmError: a weight is too large for the type, or not finite.
        """
        shared = {}
        for name, weight in self.weights.items():
            rounded = weight.to(_ROUNDED[rounding]) if weight.is_floating_point() else weight
            if not torch.isfinite(rounded).all():
                lost = bool(torch.isfinite(weight).all())
                problem = f"{name} holds a number that is " + (f"too large for {rounding}" if lost else "not finite")
                remedy = "take bf16 or fp32" if lost else "take an older checkpoint"
                raise KldmError(problem, place="checkpoint", remedy=remedy)
            shared[f"model.{name}"] = rounded
        training = {name: value for name, value in self.recipe.get("training", {}).items() if name not in _STARTS}
        recipe = {**self.recipe, "training": training} if "training" in self.recipe else self.recipe
        return Checkpoint(recipe, shared, self.state)

    def check_finite(self) -> None:
        """Raises ``KldmError`` if a number in it is not finite."""
        for name, tensor in self.tensors.items():
            if not torch.isfinite(tensor).all():
                remedy = "take an older checkpoint, or train again with a lower learning rate"
                raise KldmError(f"{name} holds a number that is not finite", place="checkpoint", remedy=remedy)

    def load_weights(self, module: nn.Module) -> None:
        """Load ``weights`` into a rebuilt model. Raises ``KldmError`` if they do not fit, or are not finite."""
        self.check_finite()
        try:
            module.load_state_dict({name: weight.to(torch.float32) for name, weight in self.weights.items()})
        except RuntimeError as error:
            raise KldmError(
                "the weights do not fit the model of its recipe",
                place="checkpoint",
                remedy="it was written by another version of kldm or of your components",
            ) from error


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically: an interrupted or failed write leaves the previous file unchanged."""
    recipe, state = json.dumps(checkpoint.recipe), json.dumps(dict(checkpoint.state))
    # Cloned, because safetensors refuses tensors that share memory, as tied weights do.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in checkpoint.tensors.items()}
    checksum = _checksum(tensors, recipe, state)
    header = {"format": _FORMATS[-1], "recipe": recipe, "state": state, "checksum": checksum}
    with atomic_write(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(tensors, temporary, metadata=header)
            temporary.chmod(mode)  # safetensors writes files that only their owner may read
        except SafetensorError as error:
            raise OSError(str(error)) from error


def load(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises ``KldmError`` if the file is missing, broken, changed or no checkpoint."""
    if not path.is_file():
        raise KldmError("no such checkpoint", place=str(path))
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if (version := header.get("format")) not in _FORMATS:
                problem = f"format {version} is not format {_FORMATS[-1]}" if version else "not a checkpoint of kldm"
                raise KldmError(problem, place=str(path), remedy="use the version of kldm that wrote it")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        recipe, state = json.loads(header["recipe"]), json.loads(header["state"])
        if not (isinstance(recipe, dict) and isinstance(state, dict)):
            raise ValueError("its header holds no recipe")
        checksum = _checksum(tensors, header["recipe"], header["state"])
        if version != _FORMATS[0] and header["checksum"] != checksum:
            raise ValueError("its checksum is that of another content")
        if foreign := sorted(name for name in tensors if name.split(".")[0] not in _PARTS):
            raise ValueError(f"no checkpoint has a tensor {printable(foreign[0])!r}")
        return Checkpoint(recipe, tensors, state)
    except (SafetensorError, KeyError, ValueError, OSError, RecursionError) as error:
        with path.open("rb") as opened:
            start = opened.read(100)
        other = in_place_of(start)
        for magic, kind in {b"PK\x03\x04": "a zip, as torch.save writes", b"\x80": "a pickle"}.items():
            if start.startswith(magic) and start[8:9] != b"{":  # a safetensors header; its length may begin like others
                other = kind, "kldm reads safetensors with a recipe alone"
        if other:
            raise KldmError(f"the file is {other[0]}, not a checkpoint", place=str(path), remedy=other[1]) from None
        reason = f"its header lacks {error}" if isinstance(error, KeyError) else error
        raise KldmError(
            f"the file is broken ({reason})", place=str(path), remedy="take an older checkpoint or start afresh"
        ) from error


def _checksum(tensors: Mapping[str, Tensor], recipe: str, state: str) -> str:
    """A digest of all that a checkpoint holds."""
    digest = hashlib.blake2b(digest_size=16)
    for text in (recipe, state):
        digest.update(f"{len(text.encode())}\n".encode() + text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def locate(path: Path, *, state: bool = False) -> Path:
    """The checkpoint in a folder; a file is returned as it is.

    In a run folder it is the one to sample with, ``best.safetensors``, or ``last.safetensors`` before there is one; in
    a folder of shared weights it is ``model.safetensors``.

    Args:
        path: the folder or file.
        state: whether training is to go on from it; in a run folder it is then ``last.safetensors``.
    """
    if not path.is_dir():
        files = [path]
    elif state:
        files = [path / "checkpoints" / "last.safetensors"]
    else:
        files = [path / "checkpoints" / f"{name}.safetensors" for name in ("best", "last")]
        files.append(path / "model.safetensors")
    for file in files:
        if file.is_file():
            return file
    remedy = "name a run folder, a folder with a model.safetensors, or a .safetensors file"
    raise KldmError("no checkpoint here", place=str(path), remedy=remedy)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors, ``optimizer.<parameter>.<key>``."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{index}.{key}": value for index, entry in state.items() for key, value in entry.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the state that ``optimizer_tensors`` returned (with names without the prefix ``optimizer.``).

    Raises:
        ValueError: it is the state of other parameters.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    for number, entry in state.items():
        if number not in range(len(shapes)) or any(t.dim() and t.shape != shapes[number] for t in entry.values()):
            raise ValueError("the optimiser's state is of other parameters")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
