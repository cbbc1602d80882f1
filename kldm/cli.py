"""The command line: thin commands over ``kldm.experiment``. A user's mistake is one sentence and exit status 1."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kldm.errors import KldmError
from kldm.version import __version__

if TYPE_CHECKING:
    import torch

_EXTRA = {"ignore_unknown_options": True, "allow_extra_args": True, "max_content_width": 110}


class _Commands(click.Group):
    """A group that lists its commands in the order of work and turns ``KldmError`` into a message."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        # Threads of torch that wait by spinning slow a busy machine down severalfold; read when torch is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        try:
            return super().invoke(ctx)
        except KldmError as error:
            raise click.ClickException(str(error)) from error
        except RuntimeError as error:
            import torch

            if not isinstance(error, torch.OutOfMemoryError):
                raise
            remedy = "lower training.batch_size or evaluation.max_pairs"
            raise click.ClickException(f"the GPU's memory does not suffice; {remedy}") from error


@click.group(cls=_Commands, context_settings={"max_content_width": 110})
@click.version_option(__version__)
def main() -> None:
    """Generate crystals with diffusion models: train, sample and evaluate what a recipe describes.

    Start with `kldm run recipes/quickstart.cfg`. Any key of a recipe can be overridden on the command line:
    `--training.epochs 100 --model.network.hidden 64`.
    """


def _code(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--code",
        type=click.Path(path_type=Path),
        multiple=True,
        help="A Python file that registers components of your own; it is executed.",
    )(function)


def _device(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--device", help="cpu, cuda, cuda:1 ...; by default the first GPU where there is one.")(
        function
    )


def _out(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option("--out", type=click.Path(path_type=Path), help=what)


@main.command(context_settings=_EXTRA)
@click.argument("recipe", type=click.Path(path_type=Path))
@_code
@_out("Run folder; by default runs/<name of the recipe>.")
@_device
@click.pass_context
def run(ctx: click.Context, recipe: Path, code: tuple[Path, ...], out: Path | None, device: str | None) -> None:
    """Train, sample, evaluate and report what RECIPE describes; resumes where it was interrupted.

    The run folder gets recipe.cfg (complete: running it repeats the run), checkpoints, train.jsonl, TensorBoard
    logs, the samples (extxyz, CIFs in a zip, JSON lines), one row per structure (results.csv) and report.json.
    """
    _run(ctx, recipe, code, out, device, evaluate=True)


@main.command(context_settings=_EXTRA)
@click.argument("recipe", type=click.Path(path_type=Path))
@_code
@_out("Run folder; by default runs/<name of the recipe>.")
@_device
@click.pass_context
def train(ctx: click.Context, recipe: Path, code: tuple[Path, ...], out: Path | None, device: str | None) -> None:
    """Only train; `kldm run` with the same arguments goes on from there."""
    _run(ctx, recipe, code, out, device, evaluate=False)


def _run(
    ctx: click.Context, recipe: Path, code: tuple[Path, ...], out: Path | None, device: str | None, evaluate: bool
) -> None:
    from kldm import runs
    from kldm.recipe import parse_overrides

    _load(code)
    folder = out or Path("runs") / recipe.stem
    overrides = parse_overrides(ctx.args)
    report = runs.run(recipe, folder, overrides=overrides, device=_chosen(device), evaluate=evaluate)
    if report["evaluation"]:
        click.echo(table(report["evaluation"]))
    click.echo(f"run folder: {folder}")


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--formula", "formulas", multiple=True, help="Content of one cell, e.g. Na2Cl2; may be repeated.")
@click.option("--z", "units", help="Formula units per cell, N or N-M: the formulas are reduced, then multiplied.")
@click.option("--split", help="Sample the compositions of this split of the model's data set instead.")
@click.option("--limit", type=click.IntRange(1), help="At most so many compositions of the split.")
@click.option("--count", default=1, show_default=True, type=click.IntRange(1), help="Structures per composition.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--max-pairs", default=64_000, show_default=True, type=click.IntRange(1), help="Pairs of atoms in a batch."
)
@_code
@_out("Folder for the samples; by default samples-1, samples-2 ... beside the model.")
@_device
def sample(
    model: Path,
    formulas: tuple[str, ...],
    units: str | None,
    split: str | None,
    limit: int | None,
    count: int,
    seed: int,
    max_pairs: int,
    code: tuple[Path, ...],
    out: Path | None,
    device: str | None,
) -> None:
    """Generate structures with MODEL, a run folder or a checkpoint.

    Either of given formulas: `kldm sample runs/quickstart --formula LiFePO4 --formula Na2Cl2 --count 5`, each the
    exact content of a cell, or with `--z 1-4` of every such number of formula units; or of a split of the data
    set: `--split test` (the default).
    """
    from kldm import runs
    from kldm.evaluation import draw
    from kldm.formulas import cells
    from kldm.results import write_json, write_samples
    from kldm.sampling import candidates, compositions, generate, requests

    _load(code)
    built, _, file = runs.load_run(model)
    folder = out or runs.fresh_folder(file.parent if model.is_file() else model, "samples")
    if (folder / "samples.jsonl").exists():
        raise KldmError("the folder holds samples already", place=str(folder), remedy="choose another --out")
    place = _chosen(device)
    if formulas and split:
        raise KldmError("--formula and --split exclude each other")
    if formulas:
        wanted_cells = cells(formulas, units)
        targets = compositions([cell.numbers for cell in wanted_cells], [cell.name for cell in wanted_cells], place)
    else:
        if units:
            raise KldmError("--z wants --formula")
        targets = draw(built.data.load(split or "test"), limit, seed).to(place)
    wanted = requests(len(targets), count)
    network = built.model.to(place)
    generated = generate(network, built.sampler, targets, wanted, seed=seed, max_pairs=max_pairs)
    made = candidates(generated, wanted)
    write_samples(folder, made, targets.ids)
    origin: dict[str, str | int] = {
        "checkpoint": str(file),
        "requests": len(wanted),
        "candidates": count,
        "seed": seed,
        "max_pairs": max_pairs,
    }
    write_json(folder / "origin.json", origin)
    failed = sum(candidate.structure is None for candidate in made)
    click.echo(f"{len(made) - failed} structures, {failed} failed: {folder}")


@main.command()
@click.argument("samples", type=click.Path(path_type=Path))
@click.option("--reference", help="DATASET/SPLIT, e.g. mp_20/test; not needed for a run folder.")
@_code
@_out("Folder for report.json and results.csv; by default beside the samples.")
def evaluate(samples: Path, reference: str | None, code: tuple[Path, ...], out: Path | None) -> None:
    """Judge SAMPLES: a run folder, or a file (extxyz, samples.jsonl, zip of CIFs) beside a --reference."""
    from kldm import evaluation, runs

    _load(code)
    if samples.is_dir() and (samples / "recipe.cfg").exists():
        if reference:
            raise KldmError("a run folder has its own reference", remedy="leave --reference out")
        report, folder = runs.evaluate_run(samples, out), out or samples
    else:
        if samples.is_dir():
            raise KldmError(
                "not a run folder (it has no recipe.cfg)", place=str(samples), remedy="name a file of samples"
            )
        if not reference:
            raise KldmError(
                "a file of samples needs a reference", place=str(samples), remedy="add --reference mp_20/test"
            )
        folder = out or samples.parent
        report = evaluation.evaluate_file(samples, reference, folder)
    click.echo(table(report["evaluation"]))
    click.echo(f"report: {folder / 'report.json'}")


@main.command(context_settings=_EXTRA)
@click.argument("recipe", type=click.Path(path_type=Path))
@_code
@click.pass_context
def check(ctx: click.Context, recipe: Path, code: tuple[Path, ...]) -> None:
    """Everything short of work: read RECIPE, build its parts, see that they fit, and print it complete."""
    from kldm import experiment
    from kldm.recipe import parse_overrides, read_recipe, recipe_text

    _load(code)
    built, tree = experiment.assemble(read_recipe(recipe, parse_overrides(ctx.args)))
    click.echo(recipe_text(tree))
    parameters = sum(parameter.numel() for parameter in built.model.parameters())
    click.echo(f"# network: {parameters:,} parameters")
    for split in dict.fromkeys(["train", *built.evaluation.splits]):
        click.echo(f"# data: {split}: {built.data.locate(split)}")


@main.command()
@_code
def components(code: tuple[Path, ...]) -> None:
    """List what is registered: name, one line on it, and its parameters with their defaults."""
    from kldm.experiment import load_components
    from kldm.recipe import describe, summary
    from kldm.registry import SHELVES

    load_components()
    _load(code)
    for shelf in SHELVES.values():
        click.secho(f"@{shelf.kind}", bold=True)
        for name in shelf.names():
            component = shelf.get(name)
            click.echo(f"  {name}: {summary(component)}")
            for parameter, kind, default in describe(component):
                click.echo(f"      {parameter}: {kind}" + (f" = {default}" if default else ""))


def table(evaluation: dict[str, Any]) -> str:
    """A report's evaluation as a small table: one row per value, one column per set of samples."""
    labels = list(evaluation)
    rows: dict[str, list[str]] = {
        "targets": [str(evaluation[label]["targets"]) for label in labels],
        "requests": [str(evaluation[label]["requests"]) for label in labels],
        "not built": [str(evaluation[label]["not_built"]) for label in labels],
    }
    notes: dict[str, None] = {}
    for column, label in enumerate(labels):
        for name, found in evaluation[label]["metrics"].items():
            notes.update(dict.fromkeys(found["notes"]))
            for key, value in found["values"].items():
                cells = rows.setdefault(f"{name}: {key}", ["-"] * len(labels))
                cells[column] = "none" if value is None else f"{value:.4f}"
    lines = [["", *labels], *([name, *cells] for name, cells in rows.items())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(labels) + 1)]
    text = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    text.insert(1, "-" * len(text[0]))
    return "\n".join([*text, *(f"note: {note}" for note in notes)])


def _load(code: tuple[Path, ...]) -> None:
    from kldm.recipe import load_code

    for path in code:
        load_code(path)


def _chosen(device: str | None) -> "torch.device":
    import torch

    from kldm.runs import default_device

    if device is None:
        return default_device()
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise KldmError(
            f"not usable here ({reason})", place=f"--device {device}", remedy="leave it out or say cpu"
        ) from error
    return chosen


if __name__ == "__main__":
    sys.exit(main())
