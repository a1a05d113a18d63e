"""The direction of imports: data moves forward only, tensors and the interface stay where they belong."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = (
    {"audit", "audit.cells", "audit.errors", "audit.files", "audit.units"},
    {"audit.images", "audit.records", "audit.settings"},
    {"audit.corpus", "audit.targets"},
    {"audit.retrieval", "audit.scores", "audit.verbatim"},
    {"audit.runs"},
    {"audit.review"},
    {"audit.evidence"},
    {"audit.demo"},
    {"audit.cli", "audit.__main__"},
)
"""Each layer may import itself and those before it."""
TENSOR_FREE = {
    "audit",
    "audit.cells",
    "audit.errors",
    "audit.files",
    "audit.units",
    "audit.images",
    "audit.records",
    "audit.settings",
    "audit.corpus",
}
TENSOR_FREE |= {"audit.verbatim", "audit.cli", "audit.__main__"}


def sources():
    return sorted([*ROOT.glob("audit/**/*.py"), *ROOT.glob("pages/*.py"), ROOT / "app.py"])


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module):
    return ".".join(module.split(".")[:2])


def imports(tree, *, top_level_only=False):
    """Modules imported anywhere in a tree, or only when it is loaded; what only types need is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide their direction"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        elif not (top_level_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))):
            yield from imports(node, top_level_only=top_level_only)


def layer(part):
    return next((number for number, parts in enumerate(LAYERS) if part in parts), None)


def faults(module, tree):
    """Sentences about what `module` must not import."""
    part = part_of(module)
    used = {part_of(name) for name in imports(tree) if name.split(".")[0] in ("audit", "pages", "app")}
    used = {name for name in used if layer(name) is not None or name in ("audit.ui",) or name[:5] == "pages"}
    interface = part == "audit.ui" or module.split(".")[0] in ("pages", "app")
    if not interface:
        if layer(part) is None:
            yield f"{module} stands in no layer; add it to LAYERS"
            return
        for name in used:
            if layer(name) is None or layer(name) > layer(part):
                yield f"{module} imports {name}, which comes after it"
        if any(name.split(".")[0] == "streamlit" for name in imports(tree)):
            yield f"{module} imports streamlit; only audit.ui, pages and app.py do"
    elif any(name in ("audit.demo", "audit.cli") for name in used):
        yield f"{module} imports {sorted(used)}; pages and ui reach neither demo nor cli"
    if part in TENSOR_FREE and any(
        name.split(".")[0] == "torch" for name in imports(tree, top_level_only=True)
    ):
        yield f"{module} imports torch when it is loaded, and needs no tensors"


@pytest.mark.parametrize("path", [path for path in sources() if path.is_file()], ids=module_of)
def test_no_arrow_points_back(path):
    assert not list(faults(module_of(path), ast.parse(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("audit.images", "from audit.corpus import reader"),
        ("audit.corpus.reader", "import audit.retrieval.index"),
        ("audit.targets.base", "def f():\n    from audit.scores.dcs import dcs"),
        ("audit.retrieval.search", "import audit.runs.run"),
        ("audit.runs.run", "from audit.ui.plots import plot"),
        ("audit.demo.clip", "import audit.ui"),
        ("audit.scores.dcs", "import streamlit as st"),
        ("audit.corpus.reader", "import torch"),
        ("audit.verbatim.masks", "try:\n    from torch import Tensor\nexcept ImportError:\n    pass"),
        ("audit.nowhere", "x = 1"),
        ("pages.home", "from audit.cli import main"),
    ],
)
def test_each_kind_of_wrong_import_is_seen(module, code):
    assert list(faults(module, ast.parse(code)))


@pytest.mark.parametrize(
    ("module", "code"),
    [
        (
            "audit.retrieval.search",
            "from audit.retrieval.index import Index\nfrom audit.corpus import reader",
        ),
        ("audit.verbatim.masks", "def f():\n    import torch"),
        ("audit.ui.plots", "import streamlit\nfrom audit.runs.run import Run"),
        ("pages.home", "import streamlit\nfrom audit.ui import plots"),
        ("audit.cli", "from audit.demo.clip import train"),
    ],
)
def test_right_imports_are_left_alone(module, code):
    assert not list(faults(module, ast.parse(code)))
