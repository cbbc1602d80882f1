"""How much memory a training step takes: what is kept for the backward pass, and the most that is held at once.

    python -m benchmarks.memory --sizes mpts_52 --batch 256 --forms manual autograd --json memory.json

Each form takes one step with AdamW in a process of its own, on a batch with the data set's numbers of atoms. Kept is
counted, parameters left out; the peak is of the whole process, weights and optimiser included (of what torch allocated
on a GPU).
"""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Literal, get_args

import attrs
import torch
from torch import Tensor, nn

from benchmarks.network import FAST, NETWORKS, SIZES, batch_for, of_form, training_step
from benchmarks.options import add_network, common, described, parsed
from benchmarks.timing import device_name, peak_memory, write_json
from kldm.execution import Messages


@attrs.frozen
class Memory:
    """Of one training step.

    Attributes:
        edges: directed edges of the batch.
        kept: bytes from the forward to the backward pass.
        peak: bytes at most.
    """

    edges: int
    kept: int
    peak: int


def kept(work: Callable[[], Tensor], network: nn.Module) -> int:
    """Bytes that a forward pass keeps for its backward pass, parameters left out."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = work()
    assert result.requires_grad  # it holds the graph, and so everything that is kept, until here
    return sum(storages.values())


def measured(
    name: str,
    form: Messages | Literal["compiled"],
    sizes: str,
    batch: int,
    hidden: int,
    device: torch.device,
    threads: int,
) -> Memory:
    """For a process of its own: a process never gives its peak back."""
    torch.set_num_threads(threads)
    layout, latent, s = batch_for(name, batch, device, SIZES[sizes])
    network = of_form(name, form, hidden, device)
    count = kept(lambda: torch.stack([v.sum() for v in network(latent, s, layout).values()]).sum(), network)
    training_step(network, latent, s, layout, bf16=False)()
    return Memory(2 * len(layout.pairs.i), count, peak_memory(device))


def main() -> None:
    parser = common("memory of a training step")
    add_network(parser, precision=False)
    parser.add_argument("--network", choices=tuple(NETWORKS), default="cspvnet")
    forms = (*get_args(Messages), "compiled")
    parser.add_argument("--forms", nargs="+", choices=forms, default=["plain", *FAST])
    parser.add_argument("--sizes", choices=tuple(SIZES), default="mp_20", help="whose numbers of atoms")
    options = parsed(parser)
    print(f"{options.network}, {options.batch} crystals of {options.sizes}, {device_name(options.device)}")
    print(f"{'':12}{'edges':>9}{'kept (GB)':>11}{'per edge (kB)':>15}{'peak (GB)':>11}")
    record = {}
    for form in options.forms:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            settings = (options.sizes, options.batch, options.hidden, options.device, options.threads)
            found = process.submit(measured, options.network, form, *settings).result()
        per_edge = found.kept / found.edges / 1e3
        print(f"{form:12}{found.edges:9}{found.kept / 1e9:11.2f}{per_edge:15.1f}{found.peak / 1e9:11.2f}", flush=True)
        record[form] = attrs.asdict(found)
    write_json(options.json, {**described(options), "forms": record})


if __name__ == "__main__":
    main()
