"""What training spends outside the network: its batches, its noise and targets, and the start of a model.

    python -m benchmarks.input --batch 256 --repeats 30 --threads 1 --json input.json

Batches are taken from 27,133 made-up crystals with the numbers of atoms of the MP-20 training split: from the store,
with the index of atoms and the list of pairs, and from torch-geometric's loader of graphs that are built one by one, in
the same process. Noise and targets of the coordinates are those of the process, and those of the definitions with sums
over 27 images in loops, from the same random numbers; they are compared in float64, where no form loses digits. All
take turns; reported are medians of the CPU time of the process (of the GPU's own clock for noise on a GPU). The start
is what a new process spends after the import of torch: on imports, on the model of KLDM-x0 for MP-20, and on a first
target, with the tables behind it.
"""

import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from benchmarks import plain_targets
from benchmarks.network import MP20_SIZES
from benchmarks.operators import operators
from benchmarks.options import common, described, parsed
from benchmarks.timing import Timing, Work, device_name, interleaved, write_json
from kldm.crystals import Crystals, CrystalStore
from kldm.processes import Given, LogTan, TrivializedTorus, VPEuclidean

RECIPE = Path(__file__).parent.parent / "recipes" / "kldm_x0_pc_mp20.cfg"
# CPU milliseconds of a batch of 256 on one thread, and CPU seconds of a start: the most that they may be.
BARS = {"input": 2.0, "start": 3.0}

START = """
import sys, time
import torch
begin = time.process_time()
from pathlib import Path
import kldm
from kldm.runs.experiment import assemble
from kldm.recipe import read_recipe
imported = time.process_time()
experiment, _ = assemble(read_recipe(Path(sys.argv[1])))
built = time.process_time()
from kldm.crystals import Crystals, Layout
one = Crystals(torch.zeros(2, 3), torch.ones(1, 6), torch.ones(2, dtype=torch.int64), Layout.of([2]))
experiment.model.processes["coordinates"].noise(one, torch.ones(1), torch.Generator().manual_seed(0))
print(imported - begin, built - imported, time.process_time() - built)
"""


def made_up() -> CrystalStore:
    """Random crystals with MP-20's numbers of atoms, in random order."""
    rng = torch.Generator().manual_seed(0)
    sizes = torch.arange(1, len(MP20_SIZES) + 1).repeat_interleave(MP20_SIZES)
    sizes = sizes[torch.randperm(len(sizes), generator=rng)]
    atoms, crystals = int(sizes.sum()), len(sizes)
    lattice = torch.cat([3 + 5 * torch.rand(crystals, 3, generator=rng), torch.full((crystals, 3), 1.57)], -1)
    return CrystalStore(
        torch.rand(atoms, 3, generator=rng),
        torch.randint(1, 95, (atoms,), generator=rng),
        lattice,
        tuple(sizes.tolist()),
        ("",) * crystals,
    )


def loaders(store: CrystalStore, batch: int) -> dict[str, Work]:
    """The next batch: of the store, and of torch-geometric."""
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader

    class Graphs(torch.utils.data.Dataset[Data]):
        """A graph is built when it is asked for."""

        def __init__(self) -> None:
            fractional, species = (each.split_with_sizes(store.sizes) for each in (store.fractional, store.species))
            self.parts = list(zip(fractional, species, store.lattice, strict=True))

        def __len__(self) -> int:
            return len(self.parts)

        def __getitem__(self, row: int) -> Data:
            fractional, species, lattice = self.parts[row]
            atoms = len(species)
            edge_index = (torch.ones(atoms, atoms) - torch.eye(atoms)).nonzero().T.contiguous()
            return Data(pos=fractional, h=species, lengths_angles=lattice[None], edge_index=edge_index, num_nodes=atoms)

    order = torch.randperm(len(store), generator=torch.Generator().manual_seed(0)).tolist()
    loader = iter(DataLoader(Graphs(), batch_size=batch, shuffle=True))
    at = iter(range(0, len(store), batch))

    def ours() -> Crystals:
        start = next(at)
        crystals = store.batch(order[start : start + batch])
        assert len(crystals.layout.owner) == len(crystals.fractional)
        assert len(crystals.layout.pairs.i) < len(crystals.fractional) * len(MP20_SIZES)
        return crystals

    return {"ours": ours, "plain": lambda: next(loader)}


@attrs.frozen
class Targets:
    """Noise and target of the coordinates of a batch, by the process and by definition."""

    clean: Crystals
    s: Tensor
    size: Tensor

    @classmethod
    def of(cls, clean: Crystals, dtype: torch.dtype, device: torch.device) -> "Targets":
        clean = attrs.evolve(clean, fractional=clean.fractional.to(dtype)).to(device)
        level = torch.randint(1, plain_targets.LEVELS + 1, (len(clean),), generator=torch.Generator().manual_seed(1))
        s = (level / plain_targets.LEVELS).to(device, dtype)
        return cls(clean, s, plain_targets.sizes().to(device, dtype))

    def ours(self) -> tuple[Tensor, Tensor, Tensor]:
        made = TrivializedTorus().noise(self.clean, self.s, self._rng())
        return made.latent["fractional"], made.latent["velocity"], made.target["velocity"]

    def plain(self) -> tuple[Tensor, Tensor, Tensor]:
        like = self.clean.fractional
        draw = torch.randn(len(like), 2, 3, generator=self._rng(), dtype=like.dtype, device=like.device)
        return plain_targets.noised(self.clean, self.s, draw, self.size)

    def difference(self) -> float:
        """The largest, of positions modulo 1, velocities and targets."""
        positions, *others = (one - other for one, other in zip(self.ours(), self.plain(), strict=True))
        return max(value.abs().max().item() for value in (positions - positions.round(), *others))

    def _rng(self) -> torch.Generator:
        return torch.Generator(self.clean.device).manual_seed(2)


def whole_model(clean: Crystals, s: Tensor) -> Work:
    """Noise and targets of all modalities of KLDM-x0 for crystal structure prediction."""
    layout = clean.layout
    store = CrystalStore(clean.fractional, clean.species, clean.lattice, layout.sizes, ("",) * len(layout))
    processes = (TrivializedTorus(), VPEuclidean(codec=LogTan()).fitted(store), Given())
    rng = torch.Generator(clean.device)
    return lambda: [process.noise(clean, s, rng) for process in processes]


def start(repeats: int) -> list[float]:
    """CPU seconds of the imports, of the model and of the tables: the medians of new processes."""
    command = [sys.executable, "-c", START, str(RECIPE)]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*(map(float, run.split()) for run in runs), strict=True)]


def main() -> None:
    parser = common("Batches, noise and targets, and the start of a model", batch=256)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--starts", type=int, default=3, help="new processes that are timed")
    options = parsed(parser)
    store = made_up()
    if (options.repeats + 1) * options.batch > len(store):
        sys.exit(f"--repeats and --batch ask for more than the {len(store)} crystals there are: lower one of them")
    device = device_name(options.device)
    print(f"{len(store)} crystals, batches of {options.batch}; {device}, torch {torch.__version__}")
    print(f"{'':21}{'ours (ms)':>11}{'plain (ms)':>11}{'ratio':>8}{'range':>16}{'bar':>6}")
    clean = store.batch(range(options.batch))
    targets = Targets.of(clean, torch.float32, options.device)
    compared: dict[str, tuple[Mapping[str, Work], torch.device]] = {
        "input": (loaders(store, options.batch), torch.device("cpu")),
        "noise and targets": ({"ours": targets.ours, "plain": targets.plain}, options.device),
    }
    record: dict[str, Any] = {}
    for name, (works, place) in compared.items():
        times = interleaved(works, options.repeats, place)
        timing = Timing.of(times["ours"], times["plain"])
        slow = statistics.median(times["plain"])
        spread, bar = f"{timing.least:.1f} - {timing.most:.1f}", BARS.get(name, "")
        print(
            f"{name:21}{1e3 * timing.median:11.3f}{1e3 * slow:11.3f}{timing.ratio:8.1f}{spread:>16}{bar:>6}", flush=True
        )
        record[name] = {
            "ours": timing.median,
            "plain": slow,
            "ratio": timing.ratio,
            "range": [timing.least, timing.most],
        }
    whole = whole_model(targets.clean, targets.s)
    record["operators"] = {
        "ours": operators(targets.ours),
        "plain": operators(targets.plain),
        "all modalities, ours": operators(whole),
    }
    record["difference"] = Targets.of(clean, torch.float64, options.device).difference()
    record["start"] = dict(zip(("imports", "model", "tables"), start(options.starts), strict=True))
    count = record["operators"]
    print(
        f"operators of noise and targets: coordinates {count['ours']}, plain {count['plain']}; with lattice and "
        f"species {count['all modalities, ours']}\n"
        f"largest difference from the plain ones in float64: {record['difference']:.1e}\n"
        f"start after torch (CPU seconds): {sum(record['start'].values()):.2f}, bar {BARS['start']}: "
        + ", ".join(f"{name} {value:.2f}" for name, value in record["start"].items())
    )
    write_json(options.json, {**described(options), **record})


if __name__ == "__main__":
    main()
