"""Imports go one way: a folder or module of kldm knows those on the floors below it, and its own."""

import ast
from collections.abc import Iterator
from pathlib import Path

import kldm

PACKAGE = Path(kldm.__file__).parent

FLOORS = (
    ("errors", "version"),
    ("runtime", "validators"),
    ("crystals",),
    ("interfaces",),
    ("registry",),
    ("torus", "execution", "memory", "recipe"),
    ("processes", "networks", "samplers", "augmentations", "potentials", "data"),
    ("reading", "model"),
    ("metrics", "sampling", "training"),
    ("evaluation",),
    ("runs",),
    ("cli", "testing"),
    ("__init__", "__main__"),
)
"""What may be known to all above it; what shares a floor does not know each other."""

FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room(module: str) -> str:
    """The folder of a module ``kldm.x.y``, or the module itself where it lies at the top."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path) -> Iterator[str]:
    """The modules of kldm that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "kldm")
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative imports hide what is imported"
            module = node.module or ""
            if module == "kldm":
                yield from (f"kldm.{name.name}" for name in node.names)
            elif module.startswith("kldm."):
                yield module


def test_every_room_has_a_floor() -> None:
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there == FLOOR.keys()


def test_imports_go_one_way() -> None:
    against = []
    for path in sorted(PACKAGE.rglob("*.py")):
        here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for module in imports(path):
            there = room(module)
            if there != here and FLOOR[there] >= FLOOR[here]:
                against.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert not against
