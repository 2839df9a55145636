"""Which lines of the project run on a GPU only, and which of them nobody has executed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGES = ("flowprior", "tokenizer", "generation", "mar", "sit", "simflow", "toy_examples")


def cuda_only_lines(source: str) -> set[int]:
    """The lines on which a statement of ``source`` begins that needs a GPU.

    Those are: calls of ``torch.cuda`` that do more than ask what there is; what an ``if`` guards that asks for ``"cuda"``; and what
    follows an ``if`` that leaves the function on anything else.
    """
    found: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                _of_block(block, found)
    return found


def _of_block(block: list[ast.stmt], found: set[int]) -> None:
    for place, statement in enumerate(block):
        if isinstance(statement, ast.If):
            wants = _asks_for_cuda(statement.test)
            if wants is True:
                found |= set(_lines(statement.body))
            elif wants is False:
                found |= set(_lines(statement.orelse))
                if isinstance(statement.body[-1], (ast.Return, ast.Raise)):
                    found |= set(_lines(block[place + 1 :]))
        elif _calls_cuda(statement):
            found.add(statement.lineno)


def _asks_for_cuda(test: ast.expr) -> bool | None:
    """Whether ``test`` holds on a GPU only (True), on anything but a GPU at least (False), or is about something else."""
    if isinstance(test, ast.BoolOp):
        answers = [_asks_for_cuda(value) for value in test.values]
        wanted = True if isinstance(test.op, ast.And) else False
        return wanted if wanted in answers else None
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        words = {node.value for node in ast.walk(test) if isinstance(node, ast.Constant)}
        equal = isinstance(test.ops[0], ast.Eq)
        if "cuda" in words and isinstance(test.ops[0], (ast.Eq, ast.NotEq)):
            return equal
    if "torch.cuda.is_available()" == ast.unparse(test):
        return True
    return None


def _calls_cuda(statement: ast.stmt) -> bool:
    """Whether a statement without statements of its own calls ``torch.cuda``, other than to ask what there is or to name a type."""
    if any(isinstance(getattr(statement, name, None), list) for name in ("body", "orelse")):
        statement = ast.Expr(ast.Tuple([item.context_expr for item in getattr(statement, "items", [])], ast.Load()))
    calls = [ast.unparse(node.func) for node in ast.walk(statement) if isinstance(node, ast.Call)]
    asked = ("torch.cuda.is_available", "torch.cuda.device_count")
    return any(call.startswith("torch.cuda.") and call not in asked for call in calls)


def _lines(block: list[ast.stmt]) -> Iterator[int]:
    for statement in block:
        yield from (node.lineno for node in ast.walk(statement) if isinstance(node, ast.stmt))


def project_lines(root: Path) -> dict[str, set[int]]:
    """:func:`cuda_only_lines` of every file of the project that has some, by the file's path below ``root``."""
    files = [file for package in PACKAGES for file in sorted((root / package).rglob("*.py"))]
    lines = {str(file.relative_to(root)): cuda_only_lines(file.read_text()) for file in files}
    return {file: found for file, found in lines.items() if found}


def sort_lines(root: Path, executed: dict[str, set[int]], before: Any = None) -> dict[str, list[str]]:
    """``executed`` and ``not_executed``: ``file:line statement`` of every CUDA-only line.

    Args:
        root: of the project.
        executed: line numbers by file below ``root``.
        before: what this returned in an earlier check. A statement that was executed then counts as executed, wherever it stands now.
    """
    earlier = {_without_number(row) for row in before["executed"]} if isinstance(before, dict) else set()
    sorted_lines: dict[str, list[str]] = {"executed": [], "not_executed": []}
    for file, lines in project_lines(root).items():
        text = (root / file).read_text().splitlines()
        for number in sorted(lines):
            row = f"{file}:{number} {text[number - 1].strip()}"
            done = number in executed.get(file, set()) or _without_number(row) in earlier
            sorted_lines["executed" if done else "not_executed"].append(row)
    return sorted_lines


def _without_number(row: str) -> str:
    place, _, statement = row.partition(" ")
    return f"{place.rpartition(':')[0]} {statement}"
