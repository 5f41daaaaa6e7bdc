"""No call of transformers leaves it open whether a checkpoint's own code may run: left open, it asks on stdin."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STATED = ("trust", "stock_only")
"""Names in ``**arguments`` that state it."""
BY_CLASS = ("LlamaForCausalLM", "FramesProcessor", "PointsProcessor", "VisionMixProcessor", "GenerationConfig")
"""Classes that are at hand: no code of a checkpoint stands in for them."""
NOT_TRANSFORMERS = ("own", "super()", "type(donor.model)", "ComposedForConditionalGeneration")


def loads(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "from_pretrained":
            yield node


def is_stated(call):
    return any(
        keyword.arg == "trust_remote_code"
        or (keyword.arg is None and any(name in ast.unparse(keyword.value) for name in STATED))
        for keyword in call.keywords
    )


@pytest.mark.parametrize("path", sorted((ROOT / "mcompose").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_load_says_whether_foreign_code_may_run(path):
    for call in loads(path):
        owner = ast.unparse(call.func.value)
        assert is_stated(call) or owner in (*BY_CLASS, *NOT_TRANSFORMERS), f"{path.name}:{call.lineno}: {owner}"


def test_nothing_reads_what_stands_on_stdin():
    for path in (ROOT / "mcompose").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "input", f"{path}:{node.lineno}"
