"""The words of code, messages and pages: phrases and names that were hard to read do not come back."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Columns of CSV files keep their names.
COLUMNS = {"steps a block", "frames a window"}
# Matched in any case; a blank stands for any white space, also across lines of a comment.
PHRASES = [
    "is not what it should be",
    "says nothing",
    "speaks? of",
    "goes away by itself",
    "one was willing to wait",
    "waits for something it knows of",
    "no rank is thought",
    "must not end what it tells of",
    "a reader that has gone",
    "what is left of the output",
    "goes nowhere",
    "can still be told to be",
    "nothing to hold out",
    "change nothing, but that",
    "what a pickle asks for",
    "much further on the window",
    "meet more rarely than",
    "sake of wide groups",
    "falls off linearly",
    "stand close together",
    "never meets",
    "without a word",
    "the faces? of",
    "what we lose at",
    "what came when",
    "names you may know",
    "trained longer by a new one",
    r"batch = PendingChunk",
    # "frames per second", not "frames a second"
    r"(?:bytes|columns|entries|files|frames|images|lines|moments|numbers|processes|records|rows|steps|threads|windows) "
    r"a (?:batch|block|class|clip|decode|epoch|file|frame|gpu|line|node|part|rank|second|step|topic|window)",
    r"(?:copy|entry|file|gpu|group|process|row) a (?:class|clip|gpu|local rank|node|rank|topic|window)",
    r"once a (?:batch|block|decode|frame|node|rank|second|window)",
]
NAMES = {
    "KeyedPermutations",
    "Look",
    "Nursery",
    "Patience",
    "Recent",
    "_astray",
    "_guide",
    "ask",
    "astray",
    "crowd",
    "lifeline",
    "meanwhile",
    "nursery",
    "passes",
}
FUNCTIONS = {"whole"}  # it is require_int
PYTHON_NAMES = {"format", "types"}  # as modules, variables, arguments and functions; attributes may be called so
OLD = re.compile(r"\b(?:" + "|".join(phrase.replace(" ", r"\s+(?:#\s+)?") for phrase in PHRASES) + r")\b", re.I)
THIS = "tests/test_words.py"


def tracked_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [name for name in listed.stdout.splitlines() if name.endswith((".py", ".sh", ".sbatch", ".md", ".txt"))]
    return [name for name in files if (ROOT / name).exists() and name != THIS]


def old_phrases(text: str) -> list[str]:
    return [re.sub(r"\s+(?:#\s+)?", " ", found.group()) for found in OLD.finditer(text)]


def bound_names(tree: ast.AST) -> Iterator[str]:
    """Names that a module gives to variables, arguments, functions, classes and imports."""
    methods = {id(node) for owner in ast.walk(tree) if isinstance(owner, ast.ClassDef) for node in owner.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).split(".")[-1]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and id(node) not in methods:
            yield node.name


def old_names(source: str) -> list[str]:
    tree = ast.parse(source)
    bound = set(bound_names(tree))
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    attributes = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    return sorted((bound | functions | attributes) & NAMES | functions & FUNCTIONS | bound & PYTHON_NAMES)


@pytest.mark.parametrize("name", tracked_files())
def test_old_words_are_gone(name: str) -> None:
    text = (ROOT / name).read_text()
    found = old_phrases(text) + (old_names(text) if name.endswith(".py") else [])
    if name.startswith("benchmarks/"):
        found = [phrase for phrase in found if phrase not in COLUMNS]
    assert not found, f"{name} has words that are hard to read: {found}"


@pytest.mark.parametrize(
    "text",
    [
        "the file is not\n    # what it should be",
        "decoded once a block",
        "frames a second",
        "One process a GPU",
        "it speaks of shards",
        "batch = PendingChunk(3)",
    ],
)
def test_old_phrases_are_found(text: str) -> None:
    assert old_phrases(text)


@pytest.mark.parametrize(
    "text", ["frames per second", "once a file is read", "np.floor(x)", "a run of windows", "depth"]
)
def test_ordinary_words_are_allowed(text: str) -> None:
    assert not old_phrases(text)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("from cltt.shards import format", ["format"]),
        ("def read(types): ...", ["types"]),
        ("class Patience:\n    def ask(self): self.passes = 1", ["Patience", "ask", "passes"]),
        ("'{}'.format(1)\nclass A:\n    def format(self): ...", []),
        ("def whole(): ...", ["whole"]),
        ("io_patience = run = depth = whole = 1", []),
    ],
)
def test_old_names_are_found(source: str, names: list[str]) -> None:
    assert old_names(source) == names
