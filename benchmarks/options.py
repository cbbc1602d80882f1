"""The command line that the benchmarks of networks, memory, training, sampling and input share."""

import argparse
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.timing import device_name
from kldm.execution import Precision, used_precision
from kldm.runtime.allocator import keep_memory


def common(description: str, batch: int = 64) -> argparse.ArgumentParser:
    """A parser of what all of them ask; a benchmark adds its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--batch", type=int, default=batch, help="crystals")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser


def add_network(parser: argparse.ArgumentParser, precision: bool = True) -> None:
    """Width, turns and, if it matters, precision of what runs a network."""
    parser.add_argument("--hidden", type=int, default=512)
    if precision:
        parser.add_argument("--repeats", type=int, default=5)
        help_ = "of ours, one table each; by default fp32, and bf16 where the device has it"
        parser.add_argument("--precision", nargs="+", choices=get_args(Precision), default=["fp32", "auto"], help=help_)


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, with the number of threads set."""
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_memory()  # as in training and sampling, for both sides
    if "precision" in options:
        options.precision = list(dict.fromkeys(used_precision(one, options.device) for one in options.precision))
    return options


def described(options: argparse.Namespace) -> dict[str, Any]:
    """For the JSON file: the options that decide the figures, the device and the version of torch."""
    settings = {name: value for name, value in vars(options).items() if name not in ("device", "json")}
    device, keeps = device_name(options.device), keep_memory()
    return {**settings, "device": device, "keeps_memory": keeps, "torch": torch.__version__}
