"""What documents name is there: the tests by which their statements are shown."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# `tests/e2e/test_x.py::test_y`; `::test_z` is of the file before it.
NAMED = re.compile(r"`(tests/[\w/]+\.py)?(?:::(test_\w+))?`")
DOCUMENTS = [path for path in sorted(ROOT.glob("docs/*.md")) if "`tests/" in path.read_text()]


@cache
def functions(path: Path) -> frozenset[str]:
    return frozenset(
        node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_tests_that_a_document_names_are_there(document: Path) -> None:
    file = ""
    missing: list[str] = []
    for path, test in NAMED.findall(document.read_text()):
        file = path or file
        if (path or test) and not (ROOT / file).is_file():
            missing.append(file)
        elif test and test not in functions(ROOT / file):
            missing.append(f"{file}::{test}")
    assert missing == []


def test_documents_of_a_cluster_name_tests() -> None:
    assert {"failures.md", "security.md"} <= {path.name for path in DOCUMENTS}
