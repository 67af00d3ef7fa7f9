"""The floors: what may import what, checked by import-linter and, for the two hardest rules, by reading the source."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ddim_lightning"


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    command = "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"
    return subprocess.run([sys.executable, "-c", command], cwd=root, capture_output=True, text=True, check=False)


def read_imports(file: Path) -> Iterator[str]:
    """Yield every module that a file names in an import, wherever in the file the import stands."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            assert node.module is not None
            yield node.module


def test_the_contracts_of_the_layers_hold():
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 kept, 0 broken" in result.stdout


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("diffusion/steps.py", "import numpy"),
        ("diffusion/steps.py", "import ddim_lightning.models.vae"),
        ("models/vae.py", "import lightning"),
        ("models/vae.py", "import ddim_lightning.data.video"),
        ("writer.py", "import ddim_lightning.datamodule"),
        ("module.py", "import ddim_lightning.commands"),
    ],
)
def test_a_broken_layer_is_found(tmp_path: Path, file: str, line: str):
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("assets", "__pycache__"))
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    with (tmp_path / PACKAGE.name / file).open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")
    result = lint_imports(tmp_path)
    assert result.returncode == 1
    importer = "ddim_lightning." + file.removesuffix(".py").replace("/", ".")
    assert f"{importer} -> {line.removeprefix('import ')} (l." in " ".join(result.stdout.split())


def test_only_root_files_import_lightning():
    importers = {
        file.relative_to(PACKAGE)
        for file in PACKAGE.rglob("*.py")
        if {"lightning", "pytorch_lightning"} & {module.split(".")[0] for module in read_imports(file)}
    }
    assert Path("module.py") in importers
    assert all(len(file.parts) == 1 for file in importers), importers
    assert not any(
        module.startswith("pytorch_lightning") for file in importers for module in read_imports(PACKAGE / file)
    )


def test_the_mathematics_imports_torch_only():
    files = [*(PACKAGE / "diffusion").rglob("*.py"), PACKAGE / "types.py"]
    allowed = {"torch", "jaxtyping", *sys.stdlib_module_names}
    for file in files:
        for module in read_imports(file):
            ours = module.startswith("ddim_lightning.diffusion") or module == "ddim_lightning.types"
            assert ours or module.split(".")[0] in allowed, f"{file.relative_to(ROOT)} imports {module}"
