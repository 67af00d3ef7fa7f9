"""The docstring of a class is read from its file, where to import it would import torch."""

from __future__ import annotations

import ast
from pathlib import Path


def read_docstring(file: str, name: str) -> str:
    """Read the docstring of a class from a file of the package.

    Args:
        file: The file, seen from the package's folder.
        name: Of the class.
    """
    body = ast.parse(Path(__file__).parents[1].joinpath(file).read_text("utf-8")).body
    return next(ast.get_docstring(node) or "" for node in body if isinstance(node, ast.ClassDef) and node.name == name)
