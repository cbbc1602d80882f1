"""The command line: thin commands over ``kldm.runs.experiment``. A user's mistake exits with one
sentence and status 1."""

import errno
import getpass
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click.core import ParameterSource

from kldm.errors import KldmError, nearest, printable
from kldm.version import __version__

if TYPE_CHECKING:
    import torch

    from kldm.training.checkpoint import Rounding

_SHARED = ("run", "train", "sample")
"""Commands whose work is shared by the processes that torchrun starts."""

_EXTRA = {"ignore_unknown_options": True, "allow_extra_args": True, "max_content_width": 110}


class _Commands(click.Group):
    """A group that lists its commands in the order of their use and turns ``KldmError`` into a message."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        # Threads that spin while they wait slow a busy machine down severalfold. Torch reads this when it is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        try:
            _settle()
            return super().invoke(ctx)
        except (KldmError, OSError, MemoryError, UnicodeError, RecursionError, OverflowError, RuntimeError) as error:
            if (sentence := _sentence(error)) is None:
                raise
            raise click.ClickException(printable(sentence)) from error

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for argument in args:
            if not argument.isascii() and (text := argument.encode("utf-8", "backslashreplace").decode()) != argument:
                raise click.ClickException(f"{text}: is not UTF-8 text; rename the file or folder")
        return super().parse_args(ctx, args)


def _sentence(error: Exception) -> str | None:
    """The sentence for an error that the user, the files or the machine are to blame for; None for any other."""
    more = "lower training.max_pairs or evaluation.max_pairs (for `kldm sample`, --max-pairs)"
    match error:
        case KldmError():
            return str(error)
        case OSError(errno=errno.EPIPE):  # whoever reads the output has gone, which click knows
            return None
        case OSError():
            reason = error.strerror or str(error) or type(error).__name__
            return f"{error.filename}: {reason}" if error.filename is not None else reason
        case MemoryError():
            return f"the memory does not suffice; {more}"
        case RecursionError():
            return "the input is nested too deeply"
        case UnicodeError():
            return f"a text or a path is not UTF-8 ({error}); save or rename it as UTF-8"
        case OverflowError():
            return f"a number is too large ({error})"
        case _:
            import torch

            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                return None
            return f"the {'GPU' if isinstance(error, torch.OutOfMemoryError) else 'machine'} is out of memory; {more}"


def _settle() -> None:
    """Give the process a home and a name where the system knows none, as in a container with a user of no account.
    Torch, Triton and matplotlib, which ask for them, would fail."""
    try:
        Path.home()
    except RuntimeError:
        from kldm.data.cache import folder_without_home

        os.environ["HOME"] = str(folder_without_home())
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = str(os.getuid())


class _WithKeys(click.Command):
    """A command that takes any number of arguments, among which dotted options and their values do not count."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        keys: list[str] = []
        others: list[str] = []
        wants_value = False
        for argument in args:
            name, equals, _ = argument.partition("=")
            is_key = name.startswith("--") and "." in name
            is_override = is_key or (wants_value and not argument.startswith("--"))
            (keys if is_override else others).append(argument)
            wants_value = is_key and not equals
        super().parse_args(ctx, others)
        ctx.args = keys
        return keys


@click.group(cls=_Commands, context_settings={"max_content_width": 110})
@click.version_option(__version__)
@click.pass_context
def main(ctx: click.Context) -> None:
    """Generate crystals with diffusion models: train, sample and evaluate what a recipe describes.

    Start with `kldm run recipes/quickstart.cfg`. Any key of a recipe can be overridden on the command line:
    `--training.epochs 100 --model.network.hidden 64`.
    """
    if ctx.invoked_subcommand not in _SHARED and "WORLD_SIZE" in os.environ and os.environ.get("RANK", "0") != "0":
        ctx.exit()  # only the first of torchrun's processes does work that is not shared


def _once(ctx: click.Context, parameter: click.Parameter, values: tuple[int, ...]) -> int:
    """The value of an option with two names, which may be given only once."""
    if len(values) > 1:
        raise KldmError("is given more than once", place=" or ".join(parameter.opts), remedy="keep one of them")
    return values[0]


_code = click.option(
    "--code",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A Python file that registers components of your own; it is executed.",
)
_device = click.option("--device", help="cpu, cuda, cuda:1 ...; by default the first GPU if there is one.")


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
    from kldm.evaluation.tables import judgements_table
    from kldm.runs import run as runs

    folder = out or Path("runs") / recipe.stem
    with _working(device) as own:
        _load(code)
        report = runs.run(recipe, folder, overrides=_overrides(ctx), device=own, evaluate=evaluate)
        if report.evaluation:
            _say(judgements_table(report.evaluation))
        _say(f"run folder: {folder}")


@main.command(context_settings=_EXTRA)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--formula", "formulas", multiple=True, help="Content of one cell, e.g. Na2Cl2; may be repeated.")
@click.option("--z", "units", help="Formula units per cell, N or N-M: the formulas are reduced, then multiplied.")
@click.option("--split", help="Sample the compositions of this split of the model's data set instead.")
@click.option("--limit", type=click.IntRange(1), help="At most this many compositions of the split.")
@click.option("--elements", help="The only elements that may appear, e.g. Li,O,Mn.")
@click.option("--atoms", help="Atoms in a cell: empirical, N or N-M; by default as in the recipe.")
@click.option("--contains", help="Atoms that every cell contains, e.g. Li2O4; the others are generated.")
@click.option("--template", type=click.Path(path_type=Path), help="A file of a structure, parts of which are kept.")
@click.option(
    "--keep",
    default="cell,positions,species",
    show_default=True,
    help="Which parts of the template are kept, separated by commas.",
)
@click.option("--keep-atoms", help="Which atoms of the template, counted from 1, e.g. 1-4,7; by default all.")
@click.option(
    "--property",
    "properties",
    multiple=True,
    metavar="NAME=VALUE",
    help="A value of a property that the model conditions on; may be repeated. Without it, the value is unknown.",
)
@click.option(
    "--count",
    "--candidates",
    "count",
    default=(1,),
    multiple=True,
    callback=_once,
    show_default=True,
    type=click.IntRange(1),
    help="Structures per composition, or in total.",
)
@click.option(
    "--select",
    type=click.Choice(["consensus"]),
    help="Mark one of the structures of each composition: the one that most of the others match.",
)
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--max-pairs",
    type=click.IntRange(1),
    help="Ordered pairs of atoms in a batch; by default 64000, fewer if memory is short.",
)
@click.option(
    "--graphs/--no-graphs",
    default=None,
    help="Replay the steps as a CUDA graph on an NVIDIA GPU; by default as the model's recipe says.",
)
@click.option("--workers", default=1, show_default=True, help="Processes that select; -1: one per CPU core.")
@click.option(
    "--time-limit", default=60.0, show_default=True, help="Seconds per pair of --select; a slower one does not match."
)
@_code
@_out("Folder for the samples; by default samples-1, samples-2 ... beside the model.")
@_device
@click.pass_context
def sample(
    ctx: click.Context,
    model: Path,
    formulas: tuple[str, ...],
    units: str | None,
    split: str | None,
    limit: int | None,
    elements: str | None,
    atoms: str | None,
    contains: str | None,
    template: Path | None,
    keep: str,
    keep_atoms: str | None,
    properties: tuple[str, ...],
    count: int,
    select: Literal["consensus"] | None,
    seed: int,
    max_pairs: int | None,
    graphs: bool | None,
    workers: int,
    time_limit: float,
    code: tuple[Path, ...],
    out: Path | None,
    device: str | None,
) -> None:
    """Generate structures with MODEL, a run folder, a folder of weights, or a checkpoint.

    \b
    For given compositions, each the exact content of a cell:
      kldm sample runs/quickstart --formula LiFePO4 --formula Na2Cl2 --count 5
      kldm sample runs/quickstart --formula LiFePO4 --candidates 10 --select consensus
    \b
    With a model that generates species too: in a chemical system, around known atoms, or in a known cell:
      kldm sample runs/dng --elements Li,O,Mn --atoms 4-20 --count 1000
      kldm sample runs/dng --contains Li2O4 --atoms 8-12
      kldm sample runs/dng --template host.cif --atoms 10
      kldm sample runs/dng --template host.cif --keep cell
    \b
    With a model that conditions on a property: for a value of it:
      kldm sample runs/energy --formula LiFePO4 --property formation_energy_per_atom=-1.5

    The structures are checked against the request; report.json counts the violations. Keys of the sampler can be
    overridden: `--sampler.steps 500`.
    """
    from kldm.runs.request import SamplingRequest, property_values
    from kldm.runs.trained import sample_run

    with _working(device) as own:
        _load(code)
        request = SamplingRequest(
            formulas=formulas,
            units=units,
            split=split,
            limit=limit,
            elements=elements,
            contains=contains,
            template=template,
            keep=tuple(filter(None, (name.strip() for name in keep.split(",")))),
            keep_atoms=keep_atoms,
            atoms=atoms,
            count=count,
            seed=seed,
            properties=property_values(properties),
            select=select,
        )
        report, folder = sample_run(
            model,
            request,
            out,
            overrides=_overrides(ctx),
            device=own,
            max_pairs=max_pairs,
            graphs=graphs,
            workers=workers,
            time_limit=time_limit,
        )
        failed = sum(report["not_built"].values())
        _say(f"{report['requests'] - failed} structures, {failed} failed: {folder}")
        if select:
            _say(f"one of {count} is selected for each composition: 'selected' in samples.jsonl and samples.extxyz")
        for name, number in report["violations"].items():
            if number:
                _say(f"{number} structures violate the constraint on {name}", err=True)
        _fail_if_all_failed(report["requests"], report["not_built"], folder)


@main.command(context_settings=_EXTRA)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The file, NAME.safetensors.")
@click.option(
    "--precision",
    default="fp16",
    show_default=True,
    type=click.Choice(["fp32", "fp16", "bf16"]),
    help="What the weights are rounded to; they are used in fp32.",
)
@_code
@click.pass_context
def export(ctx: click.Context, model: Path, out: Path, precision: "Rounding", code: tuple[Path, ...]) -> None:
    """Write the weights and the recipe of MODEL, a run folder or a checkpoint, to one small file to be shared.

    `kldm sample` takes it like a run folder. It has no optimiser state: training can start from it
    (training.start_from), but not resume. Overridden keys of the sampler go into the recipe of the file.
    """
    from kldm.runs import trained

    _load(code)
    trained.export(model, out, precision, _overrides(ctx))
    _say(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


@main.command(context_settings=_EXTRA)
@click.argument("structures", metavar="STRUCTURES")
@click.option("--potential", required=True, help="The potential, e.g. mattersim.v1; `kldm components` lists them.")
@click.option("--limit", type=click.IntRange(1), help="At most this many structures, the first ones.")
@click.option("--workers", default=1, show_default=True, help="Processes; -1: one per CPU core.")
@click.option(
    "--time-limit", default=600.0, show_default=True, help="Seconds per structure; one that takes longer fails."
)
@_code
@_out("Folder; by default relaxed-1, relaxed-2 ... beside the structures, or here.")
@click.pass_context
def relax(
    ctx: click.Context,
    structures: str,
    potential: str,
    limit: int | None,
    workers: int,
    time_limit: float,
    code: tuple[Path, ...],
    out: Path | None,
) -> None:
    """Relax STRUCTURES: a file or folder of any program, or DATASET/SPLIT.

    \b
      kldm relax samples.jsonl --potential mattersim.v1 --potential.weights mattersim-v1.0.0-1M.pth
      kldm relax mp_20/train --potential chgnet.v1 --relaxation.max_steps 0 --workers 8

    Options with a dot are those of the potential and of the relaxation. The folder gets the relaxed structures
    (samples.jsonl, samples.extxyz, structures.zip), relaxation.csv, relaxation.json, and entries.json.gz, a convex hull
    for `kldm evaluate --metric stability.v1`. Interrupted work resumes where it stopped.
    """
    from kldm.runtime.pool import start_worker

    start_worker(workers, ["kldm.metrics"])
    from kldm.evaluation.relaxing import FILES, relax_file, relaxing_with
    from kldm.runtime.locking import results_folder
    from kldm.runtime.paths import expanded

    _load(code)
    relaxing = relaxing_with(potential, _overrides(ctx))
    source = expanded(structures)
    parent = (source if source.is_dir() else source.parent) if source.exists() else Path()
    with results_folder(out, parent, "relaxed", FILES) as folder:
        report = relax_file(structures, relaxing, folder, workers=workers, time_limit=time_limit, limit=limit)
    _say(
        f"{report['relaxed']} structures ({report['unconverged']} not converged), "
        f"{sum(report['failures'].values())} failed: {folder}"
    )
    for note in report["notes"]:
        _say(f"note: {note}", err=True)
    _fail_if_all_failed(report["requests"], report["failures"], folder)


@main.command(cls=_WithKeys, context_settings={"allow_extra_args": True, "max_content_width": 110})
@click.argument("samples", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--reference", help="DATASET/SPLIT, e.g. mp_20/test, or a file; not needed for a run folder.")
@click.option("--metric", help="Registered name of the metric; by default match_rate.v1.")
@click.option("--k", type=click.IntRange(1), help="At most this many candidates of each target; by default all.")
@click.option(
    "--requested",
    is_flag=True,
    help="Judge only the rows of the reference that the samples name (by target, id or number), failed ones included.",
)
@click.option("--train", default="", help="The training set, to check whether the reference overlaps with it.")
@click.option("--workers", type=int, help="Processes of the metric; -1: one per CPU core.")
@click.option("--time-limit", type=float, help="Seconds of the metric per structure; one that takes longer fails.")
@_code
@_out("Folder for report.json and the rows; by default evaluation-1, evaluation-2 ... beside the samples.")
@click.pass_context
def evaluate(
    ctx: click.Context,
    samples: tuple[Path, ...],
    reference: str | None,
    metric: str | None,
    k: int | None,
    requested: bool,
    train: str,
    workers: int | None,
    time_limit: float | None,
    code: tuple[Path, ...],
    out: Path | None,
) -> None:
    """Judge SAMPLES, a run folder or files of any program, by a registered metric.

    Files may be extxyz, a folder or zip of CIFs, CSV with a column cif, pymatgen's JSON or JSON lines, and the .pt
    files of CDVAE, DiffCSP and FlowMM. Several files are several candidates of each target where the metric judges
    answers to a reference (match_rate.v1), else several sets, whose mean and standard deviation are reported.

    \b
      kldm evaluate runs/quickstart
      kldm evaluate samples.jsonl --reference mp_20/test --k 20
      kldm evaluate runs/x0/samples-1 --reference mp_20/test --requested --metric.select consensus
      kldm evaluate generated.pt --metric validity.v1
      kldm evaluate generated.pt --reference mp_20/test --metric de_novo.v1 --metric.draw 1000 --workers 8
      kldm evaluate generated.pt --reference mp_20/train --metric stability.v1 \\
        --metric.potential.@potentials chgnet.v1 --metric.hull '["entries.json.gz"]'
      kldm evaluate samples.jsonl --reference mp_20/test --metric mine.v1 --metric.cutoff 0.7 --code mine.py

    Options `--metric.key value` are keys of the metric as in a recipe; `kldm components` lists them.
    """
    from kldm.runtime.pool import start_worker

    start_worker(1 if workers is None else workers, ["kldm.metrics"])
    from kldm.evaluation.files import METRIC, judge_files, metric_called
    from kldm.evaluation.judging import EVALUATION, RESULTS
    from kldm.evaluation.tables import judgements_table
    from kldm.runs import run as runs
    from kldm.runtime.locking import results_folder

    _load(code)
    keys = _overrides(ctx)
    for path in samples:
        if not path.exists():
            raise KldmError("there is no such file or folder", place=str(path))
    if len(samples) == 1 and (samples[0] / "recipe.cfg").exists():
        of_the_run = ("reference", "metric", "k", "requested", "train", "workers", "time_limit")
        if given := [*_given(of_the_run), *(f"--{key}" for key in keys)]:
            remedy = f"leave {' and '.join(given)} out, or judge its file of samples"
            raise KldmError("a run folder has its own reference and metrics", place=str(samples[0]), remedy=remedy)
        with results_folder(out, samples[0], EVALUATION, runs.evaluation_files(samples[0])) as folder:
            report = runs.evaluate_run(samples[0], folder)
    else:
        options = {"workers": workers, "time_limit": time_limit}
        options = {key: value for key, value in options.items() if value is not None}
        judge = metric_called(metric or METRIC, keys, options)
        parent = samples[0] if samples[0].is_dir() else samples[0].parent
        with results_folder(out, parent, EVALUATION, RESULTS) as folder:
            report = judge_files(samples, judge, folder, reference=reference, k=k, train=train, requested=requested)
    for read in report.about.get("read", ()):
        failed = f" ({read['failed']} failed)" if read["failed"] else ""
        _say(f"{read['file']}: {read['structures']} structure{'s' * (read['structures'] != 1)}{failed}")
    _say(judgements_table(report.evaluation))
    _say(f"report: {folder / 'report.json'}")
    failures = [judgement.failure for judgement in report.evaluation.values()]
    if all(failures):
        raise KldmError(str(failures[0]), place=str(folder / "results.csv"))


@main.command()
@click.argument("paths", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@_out("Folder for comparison.json, comparison.csv and published.csv as well.")
def compare(paths: tuple[Path, ...], out: Path | None) -> None:
    """Put the reports of RUN ... side by side (run folders, folders of `kldm evaluate`, report.json files), and
    published numbers beside them where the definitions agree. Of a folder with several, the newest counts."""
    from kldm.evaluation.comparison import FILES
    from kldm.evaluation.comparison import compare as compared
    from kldm.runtime.files import make_writable, refuse_existing

    if out is not None:
        refuse_existing(out, FILES)
        make_writable(out)
    comparison = compared(paths)
    if out is not None:
        comparison.write(out)
    _say(comparison.text())


@main.command(context_settings=_EXTRA)
@click.argument("recipe", type=click.Path(path_type=Path))
@_code
@click.pass_context
def check(ctx: click.Context, recipe: Path, code: tuple[Path, ...]) -> None:
    """Check RECIPE without running it: read it, build its parts, check that they fit, and print it complete."""
    from kldm.recipe import read_recipe, recipe_text
    from kldm.runs import experiment
    from kldm.training import checkpoint

    _load(code)
    built, tree = experiment.assemble(read_recipe(recipe, _overrides(ctx)))
    experiment.prepare(built, everything=False)
    if built.training.start_from is not None:
        checkpoint.locate(built.training.start_from, state=built.training.start_with == "state")
    _say(recipe_text(tree))
    parameters = sum(parameter.numel() for parameter in built.model.parameters())
    _say(f"# network: {parameters:,} parameters")
    validation = [built.validation.split] if built.validation else []
    for split in dict.fromkeys(["train", *validation, *built.evaluation.splits]):
        _say(f"# data: {split}: {built.data.locate(split)}")


@main.command()
@_code
def components(code: tuple[Path, ...]) -> None:
    """List all registered components: name, summary, and parameters with their defaults."""
    from kldm.recipe import describe, summary
    from kldm.registry import SHELVES

    _load(code)
    for shelf in SHELVES.values():
        click.secho(f"@{shelf.kind}", bold=True)
        for name in shelf.names():
            component = shelf.get(name)
            click.echo(f"  {name}: {summary(component)}")
            for parameter, kind, default in describe(component):
                click.echo(f"      {parameter}: {kind}" + (f" = {default}" if default else ""))


def _given(options: Collection[str]) -> list[str]:
    """Which of the options were given on the command line, as written there, in the command's order."""
    context = click.get_current_context()
    return [
        f"--{name.replace('_', '-')}"
        for parameter in context.command.params
        if (name := parameter.name) in options and context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]


def _overrides(ctx: click.Context) -> dict[str, Any]:
    """Values for keys of a recipe: the dotted options, which the command does not have itself."""
    from kldm.recipe import parse_overrides

    known = [name for parameter in ctx.command.params for name in parameter.opts]
    for argument in ctx.args:
        name = argument.partition("=")[0]
        if name.startswith("--") and "." not in name:
            raise KldmError("there is no such option", place=name, remedy=nearest(name, known))
    return parse_overrides(ctx.args)


def _load(code: tuple[Path, ...]) -> None:
    from kldm.recipe import load_code

    for path in code:
        load_code(path)


@contextmanager
def _working(device: str | None) -> Iterator["torch.device"]:
    """The device of this process, which works alone or is one of those that torchrun started."""
    import torch

    from kldm.execution import default_device
    from kldm.runtime.distributed import joined

    try:
        requested = default_device() if device is None else torch.device(device)
    except RuntimeError as error:
        raise _unusable(device, error) from error
    with joined(requested) as own:
        if device is not None:
            try:
                torch.zeros(1, device=own).item()
            except (RuntimeError, AssertionError) as error:
                raise _unusable(device, error) from error
        yield own


def _unusable(device: str | None, error: Exception) -> KldmError:
    reason = str(error).splitlines()[0]
    return KldmError(f"not usable here ({reason})", place=f"--device {device}", remedy="leave it out or say cpu")


def _say(text: str, err: bool = False) -> None:
    """Print, in one process only if there are several, and nothing of a file that would control the terminal."""
    from kldm.runtime.distributed import world

    if world().is_writer:
        click.echo("\n".join(map(printable, text.split("\n"))), err=err)


def _fail_if_all_failed(requests: int, failures: Mapping[str, int], folder: Path) -> None:
    from kldm.evaluation.judging import failure

    if sentence := failure(requests, failures):
        raise KldmError(sentence, place=str(folder))


def program() -> None:
    """The program ``kldm``."""
    # Workers are started by ``python -m`` or ``-c``, which would import a joblib.py of the working directory.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    main()


if __name__ == "__main__":
    program()
