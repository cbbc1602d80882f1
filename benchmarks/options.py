"""The command line that the benchmarks of networks, memory, training, sampling and input share."""

import argparse
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.timing import device_name
from kldm.precision import Precision


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
        parser.add_argument("--precision", choices=get_args(Precision), default="fp32", help="of ours")


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, with the number of threads set."""
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def described(options: argparse.Namespace) -> dict[str, Any]:
    """For the JSON file: the options that decide the figures, the device and the version of torch."""
    settings = {name: value for name, value in vars(options).items() if name not in ("device", "json")}
    return {**settings, "device": device_name(options.device), "torch": torch.__version__}
