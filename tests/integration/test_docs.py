"""The documentation does what it says: its programs run, and what it names exists."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner

from kldm.cli import main
from kldm.crystals import lattice_matrix
from kldm.data import SPLITS, Data, Parsed, save_store
from kldm.reading import read_reference
from kldm.recipe import read_recipe
from kldm.recipe.signatures import parameters
from kldm.registry import SHELVES
from kldm.runs.experiment import Experiment, assemble

ROOT = Path(__file__).parent.parent.parent
PAGES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "weights/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
)


@attrs.frozen
class Block:
    """A fenced block of a page; one whose first line is a comment with a file name is that file."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        first = re.match(r"# ([\w.]+\.(?:py|cfg))\n", self.text)
        return first[1] if first else None


def blocks(page: Path, language: str) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [Block(name, text) for name, text in found if name == language]


def programs(page: Path) -> str:
    """The blocks of Python that are no files, as one program."""
    return "\n".join(block.text for block in blocks(page, "python") if block.file is None)


def commands() -> Iterator[tuple[Path, list[str]]]:
    """Every `kldm ...` of the pages, in blocks and in running text."""
    for page in PAGES:
        lines = [line for block in blocks(page, "bash") for line in block.text.splitlines()]
        lines += re.findall(r"`(kldm [^`]+)`", page.read_text(encoding="utf-8"))
        yield from ((page, shlex.split(line, comments=True)[1:]) for line in lines if line.startswith("kldm "))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all programs: the data set is parsed once."""
    return tmp_path_factory.mktemp("cache")


def python(folder: Path, cache: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "KLDM_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_programs_of_the_pages_run(tmp_path: Path, cache: Path) -> None:
    with_programs = [page for page in PAGES if programs(page)]
    for page in with_programs:
        folder = tmp_path / page.relative_to(ROOT).with_suffix("")
        folder.mkdir(parents=True)
        python(folder, cache, "-c", programs(page))
    docs = tmp_path / "docs"
    assert (docs / "how_to" / "plain_python" / "runs" / "plain" / "checkpoints" / "best.safetensors").is_file()
    assert (docs / "data" / "prototypes" / "val.safetensors").is_file()


def test_the_components_of_the_pages_run_from_their_recipe(tmp_path: Path, cache: Path) -> None:
    for block in [block for page in PAGES for name in ("python", "ini") for block in blocks(page, name)]:
        if block.file is not None:
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
    code = [argument for file in ("wrapped_ve.py", "small_gnn.py", "volume_error.py") for argument in ("--code", file)]
    small = ("--device", "cpu", "--sampler.steps", "3", "--evaluation.limit", "2")
    python(tmp_path, cache, "-m", "kldm", "run", "mine.cfg", *code, "--out", "mine", *small)
    complete = read_recipe(tmp_path / "mine" / "recipe.cfg")
    assert complete["model"]["coordinates"] == {"@processes": "my_wrapped_ve.v1", "sigma_min": 0.005, "sigma_max": 0.4}
    assert complete["model"]["network"] == {"@networks": "small_gnn.v1", "hidden": 32, "layers": 3}
    header, *rows = (tmp_path / "mine" / "samples" / "test" / "results.csv").read_text().splitlines()
    assert len(rows) == 2
    assert "volume_error" in header.split(",")
    report = json.loads((tmp_path / "mine" / "report.json").read_text())
    assert set(report["evaluation"]["test"]["metrics"]["volume"]["values"]) == {"volume_error", "within"}
    own = ("--metric", "volume_error.v1", "--metric.tolerance", "0.3", "--code", "volume_error.py", "--out", "judged")
    known = read_reference("aflow_prototypes/test").structures[:2]
    rows = [
        json.dumps({"target": row, "structure": crystal and crystal.as_dict()}) for row, crystal in enumerate(known)
    ]
    (tmp_path / "samples.jsonl").write_text("\n".join(rows))
    file = ("samples.jsonl", "--reference", "aflow_prototypes/test", "--requested")
    python(tmp_path, cache, "-m", "kldm", "evaluate", *file, *own)
    assert "volume_error" in (tmp_path / "judged" / "results.csv").read_text().splitlines()[0].split(",")
    python(tmp_path, cache, "-m", "kldm", "compare", "mine", "judged")
    for split in SPLITS:
        store = Data(name="aflow_prototypes", max_atoms=8).load(split)
        volume = lattice_matrix(store.lattice).det() / store.layout.num_atoms
        store = attrs.evolve(store, per_crystal={"volume_per_atom": volume})
        save_store(tmp_path / "volumes" / f"{split}.safetensors", Parsed(store))
    condition = ("--code", "log_volume.py", "--model.conditions.volume.@processes", "log_volume.v1")
    python(tmp_path, cache, "-m", "kldm", "run", "mine.cfg", *code, *condition, "--data.name", "volumes", *small)
    asked = ("--formula", "NaCl", "--count", "8", "--property", "volume_per_atom=20", "--out", "asked")
    python(tmp_path, cache, "-m", "kldm", "sample", "runs/mine", *code, *condition[:2], *asked)
    python(tmp_path, cache, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py")
    for name in ("two_step", "mixed"):
        own = ("--formula", "SrTiO3", "--code", f"{name}.py", "--sampler.@samplers", f"{name}.v1", "--out", name)
        python(tmp_path, cache, "-m", "kldm", "sample", str(ROOT / "weights" / "perov5_small"), *own)
        assert len((tmp_path / name / "samples.jsonl").read_text().splitlines()) == 1


def test_the_metric_of_the_page_measures_what_it_says(tmp_path: Path, cache: Path) -> None:
    (block,) = blocks(ROOT / "docs" / "how_to" / "metric.md", "python")
    (tmp_path / "volume_error.py").write_text(block.text, encoding="utf-8")
    # Of two answers to a cubic cell of edge 4, one has the edge 4.04 and one failed.
    program = """
from pymatgen.core import Lattice, Structure
from kldm.interfaces import Candidate, Samples
from volume_error import VolumeError
right, near = (Structure(Lattice.cubic(edge), ["Po"], [[0, 0, 0]]) for edge in (4.0, 4.04))
samples = Samples((Candidate(0, 0, near), Candidate(0, 1, None, "failed")), (right,))
found = VolumeError(tolerance=0.05).measure(samples)
assert abs(found.values["volume_error"] - (1.01**3 - 1)) < 1e-12, found
assert found.values["within"] == 0.5, found
assert VolumeError(tolerance=0.03).measure(samples).values["within"] == 0, found
assert [row["volume_error"] is None for row in found.rows] == [False, True], found
"""
    python(tmp_path, cache, "-c", program)


def test_the_recipe_of_the_page_on_recipes_is_read(tmp_path: Path) -> None:
    text, condition = (block.text for block in blocks(ROOT / "docs" / "recipes.md", "ini"))
    (tmp_path / "parts").symlink_to(ROOT / "recipes" / "parts")
    (tmp_path / "example.cfg").write_text(text, encoding="utf-8")
    experiment, complete = assemble(read_recipe(tmp_path / "example.cfg", {"model.network.hidden": 8}))
    assert complete["validation"]["sampler"]["steps"] == experiment.sampler.steps == 500
    (tmp_path / "example.cfg").write_text(f"{text}\n{condition}", encoding="utf-8")
    experiment, complete = assemble(read_recipe(tmp_path / "example.cfg", {"model.network.hidden": 8}))
    assert experiment.data.columns == ("formation_energy_per_atom",)
    assert complete["data"]["columns"] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    for link in links:
        assert (page.parent / link).exists(), link
    for path in re.findall(r"\b(?:recipes|kldm|docs|tests|benchmarks)/[\w./-]+\.(?:cfg|py|md)\b", text):
        assert (ROOT / path).is_file(), path


def test_commands_and_their_options_exist() -> None:
    found = list(commands())
    assert len(found) > 10
    for page, (name, *arguments) in found:
        command = main.commands.get(name)
        if name.startswith("-"):
            continue
        assert command is not None, f"{page.name}: kldm {name}"
        options = {option for parameter in command.params for option in parameter.opts}
        for argument in arguments:
            if argument.startswith("--") and "." in argument:
                assert command.context_settings.get("allow_extra_args"), f"{page.name}: kldm {name} {argument}"
            elif argument.startswith("--"):
                assert argument in options, f"{page.name}: kldm {name} {argument}"


def test_names_of_components_are_registered() -> None:
    known = {name for shelf in SHELVES.values() for name in shelf.names()}
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    for text in texts.values():
        known |= set(re.findall(r'^@\w+\("([\w.]+)"\)', text, re.MULTILINE))
    for page, text in texts.items():
        for line in text.splitlines():
            if not line.startswith("Error:"):
                named = set(re.findall(r"\b[a-z]\w*\.v\d+\b", line))
                assert named <= known, f"{page}: {named - known}"


def test_every_recipe_and_every_key_of_a_section_is_described() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for recipe in (ROOT / "recipes").glob("*.cfg"):
        assert f"`recipes/{recipe.name}`" in text
    sections = text[text.index("## The sections") :]
    for section, parameter in parameters(Experiment).items():
        assert f"[{section}" in sections
        kind = parameter.annotation
        kind = next((part for part in getattr(kind, "__args__", ()) if attrs.has(part)), kind)
        if attrs.has(kind):
            for key in parameters(kind):
                assert f"`{key}`" in sections or f"`[{section}.{key}]`" in sections, f"{section}.{key}"


@pytest.mark.parametrize(
    "override",
    [
        ["--model.lattice.@processes", "vp_euclid.v1"],
        ["--model.network.hiden", "3"],
        ["--training.epochs", "six"],
        ["--data.root", "${nothing.here}"],
    ],
    ids=lambda override: str(override[0]),
)
def test_errors_shown_are_the_errors_told(override: list[str]) -> None:
    result = CliRunner().invoke(main, ["check", str(ROOT / "recipes" / "quickstart.cfg"), *override])
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert result.output in (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
