"""The documentation does what it says: its programs run, and what it names exists."""

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
from kldm.recipe import read_recipe
from kldm.recipe.signatures import parameters
from kldm.registry import SHELVES
from kldm.runs.experiment import Experiment, assemble

ROOT = Path(__file__).parent.parent.parent
PAGES = (ROOT / "README.md", ROOT / "weights" / "README.md", *sorted((ROOT / "docs").glob("*.md")))


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
        env={**os.environ, "KLDM_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_programs_of_the_pages_run(tmp_path: Path, cache: Path) -> None:
    with_programs = [page for page in PAGES if programs(page)]
    for page in with_programs:
        (tmp_path / page.stem).mkdir()
        python(tmp_path / page.stem, cache, "-c", programs(page))
    assert (tmp_path / "adding_a_component" / "runs" / "plain" / "checkpoints" / "best.safetensors").is_file()
    assert (tmp_path / "data" / "prototypes" / "val.safetensors").is_file()


def test_the_components_of_the_pages_run_from_their_recipe(tmp_path: Path, cache: Path) -> None:
    for block in [block for page in PAGES for name in ("python", "ini") for block in blocks(page, name)]:
        if block.file is not None:
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
    code = [argument for file in ("wrapped_ve.py", "small_gnn.py") for argument in ("--code", file)]
    small = ("--device", "cpu", "--sampler.steps", "3", "--evaluation.limit", "2")
    python(tmp_path, cache, "-m", "kldm", "run", "mine.cfg", *code, "--out", "mine", *small)
    complete = read_recipe(tmp_path / "mine" / "recipe.cfg")
    assert complete["model"]["coordinates"] == {"@processes": "my_wrapped_ve.v1", "sigma_min": 0.005, "sigma_max": 0.4}
    assert complete["model"]["network"] == {"@networks": "small_gnn.v1", "hidden": 32, "layers": 3}
    assert len((tmp_path / "mine" / "samples" / "test" / "results.csv").read_text().splitlines()) == 3
    own = ("--metric", "roomy.v1", "--metric.threshold", "18", "--code", "roomy.py", "--out", "judged")
    python(tmp_path, cache, "-m", "kldm", "evaluate", "mine/samples/test/samples.jsonl", *own)
    assert (tmp_path / "judged" / "results.csv").read_text().startswith("target,candidate,name,space\n")
    own = ("--formula", "SrTiO3", "--code", "two_step.py", "--sampler.@samplers", "two_step.v1", "--out", "drawn")
    python(tmp_path, cache, "-m", "kldm", "sample", str(ROOT / "weights" / "perov5_small"), *own)
    assert len((tmp_path / "drawn" / "samples.jsonl").read_text().splitlines()) == 1


def test_the_recipe_of_the_page_on_recipes_is_read(tmp_path: Path) -> None:
    (text,) = (block.text for block in blocks(ROOT / "docs" / "recipes.md", "ini"))
    (tmp_path / "parts").symlink_to(ROOT / "recipes" / "parts")
    (tmp_path / "example.cfg").write_text(text, encoding="utf-8")
    experiment, complete = assemble(read_recipe(tmp_path / "example.cfg", {"model.network.hidden": 8}))
    assert complete["validation"]["sampler"]["steps"] == experiment.sampler.steps == 500


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
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
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        own = set(re.findall(r'^@\w+\("([\w.]+)"\)', text, re.MULTILINE))
        for line in text.splitlines():
            if not line.startswith("Error:"):
                named = set(re.findall(r"\b[a-z]\w*\.v\d+\b", line))
                assert named <= known | own, f"{page.name}: {named - known - own}"


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
