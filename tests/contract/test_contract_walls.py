"""The walls between the rooms hold, and a broken wall is caught."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(LINT_IMPORTS), "--no-cache"], cwd=folder, capture_output=True, text=True, env={"PYTHONPATH": str(folder)}
    )


@pytest.fixture
def copy_of_the_tree(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "mcompose", tmp_path / "mcompose", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "line", "wall"),
    [
        ("methods/core/method.py", "from mcompose.recipe import load_recipe", "rooms"),
        ("errors.py", "import mcompose.ledger", "rooms"),
        ("modeling/__init__.py", "import mcompose.errors", "island"),
        ("recipe/__init__.py", "import torch", "plain values"),
        ("progress.py", "import torch", "plain values"),
        ("whole_files.py", "import mcompose.ledger", "rooms"),
        ("methods/core/method.py", "import transformers", "maths"),
        ("merge/__init__.py", "import safetensors", "weight files"),
        ("evaluate/__init__.py", "import huggingface_hub", "Hub"),
        ("compose/__init__.py", "import mergekit", "mergekit"),
    ],
)
def test_a_broken_wall_is_caught(copy_of_the_tree: Path, file: str, line: str, wall: str) -> None:
    path = copy_of_the_tree / "mcompose" / file
    path.write_text(path.read_text() + f"\n{line}\n")
    result = lint_imports(copy_of_the_tree)
    assert result.returncode != 0
    broken = [text for text in result.stdout.splitlines() if " BROKEN" in text]
    assert any(wall in text for text in broken), result.stdout


def test_the_walls_hold() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout


def test_rooms_are_entered_by_their_doors():
    """Across rooms a name comes from the room's ``__init__``, or from that of a folder inside it."""
    package = ROOT / "mcompose"
    rooms = {path.parent.name for path in package.glob("*/__init__.py")} - {"pipeline", "cli"}  # one module a command
    past = []
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or node.level or not (node.module or "").startswith("mcompose."):
                continue
            place = Path(*str(node.module).split("."))
            foreign = place.parts[1] in rooms and place.parts[1] != path.relative_to(package).parts[0]
            if foreign and not (ROOT / place / "__init__.py").is_file():
                past.append(f"{path.relative_to(ROOT)}:{node.lineno} imports {node.module}")
    assert past == []
