"""What `/readyz` can answer stands in the documentation, with the way out."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import adapter

PACKAGE = Path(adapter.__file__).parent
PAGE = PACKAGE.parent / "docs" / "operations.md"
# where the sentences are made, by file: functions, or the attribute that they are kept in
MAKERS = {
    "server/health.py": {"not_ready"},
    "server/app.py": {"not_ready"},
    "life.py": {"not_ready"},
    "triton/watchdog.py": {"_tell", "_down"},
    "triton/replicas.py": {"note", "ask", "_leave", "nobody", "_find"},
}


def patterns(file: str) -> Iterator[str]:
    """Every sentence that is made there, as a regular expression with anything where a name or a reason stands."""
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name in MAKERS[file]:
            yield from _sentences(ast.Module(node.body[1:] if ast.get_docstring(node) else node.body, []))
        elif isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Attribute) and target.attr in MAKERS[file] for target in node.targets
        ):
            yield from _sentences(node)


NO_ANSWER = ("info", "warning", "level")  # what is called with the words of the log, or of a metric


def _sentences(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.JoinedStr):
        parts = [re.escape(str(p.value)) if isinstance(p, ast.Constant) else ".*?" for p in node.values]
        if parts[-1] == r"\." or parts[-1].endswith(r"\."):
            yield "".join(parts)
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[A-Z].* .*\.", node.value):
        yield re.escape(node.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in NO_ANSWER:
        return
    for below in ast.iter_child_nodes(node):
        yield from _sentences(below)


@pytest.mark.parametrize(("file", "least"), [(file, 1) for file in MAKERS] + [("triton/replicas.py", 9)])
def test_every_sentence_of_readyz_is_documented_with_the_way_out(file: str, least: int) -> None:
    page = PAGE.read_text().split("## Why a server is not ready")[1].split("\n## ")[0]
    told = re.findall(r"^\| (.+?) \| (.+) \|$", page, re.MULTILINE)
    found = list(patterns(file))
    assert len(found) >= least
    for pattern in found:
        way_out = next((text for sentence, text in told if re.fullmatch(pattern, sentence)), "")
        assert len(way_out) > 10, f"docs/operations.md does not have {pattern}"
