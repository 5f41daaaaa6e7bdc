"""What starting costs: help, inspect and plan load none of the heavy libraries; their CPU seconds with ``-m cost``.

The checkpoints are real headers over sparse files, with tokenizers of 32,000 entries. 7B: LLaVA 1.5 by its published
shapes, and two Vicuna-like language models. 70B: five models of the shapes of Llama 2 70B, in 15 files each.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sparse_checkpoints import TEXT, language, write_checkpoint, write_llava
from tiny_sources import write_recipe

HEAVY = ("torch", "transformers", "numba", "mergekit", "accelerate", "peft", "huggingface_hub", "safetensors")
LARGE = {
    **TEXT, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
    "num_key_value_heads": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seven")
    write_llava(folder / "llava")
    write_checkpoint(folder / "vicuna", language("", TEXT), TEXT, shards=2, added={})
    write_checkpoint(folder / "expert", language("", TEXT), TEXT, shards=2, added={0: "token0é"})
    return write_recipe(
        folder / "recipe.yaml",
        base="local:vicuna",
        sources=[{"name": "sees", "model": "local:llava"}, {"name": "expert", "model": "local:expert"}],
        merge={"method": "ties", "parameters": {"density": 0.2}},
        output={"dir": "out"},
    )


@pytest.fixture(scope="module")
def large_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seventy")
    names = ("base", "chat", "code", "maths", "prose")
    for name in names:
        write_checkpoint(folder / name, language("", LARGE), LARGE, shards=15, added={})
    return write_recipe(
        folder / "recipe.yaml",
        base="local:base",
        sources=[{"name": name, "model": f"local:{name}"} for name in names[1:]],
        merge={"method": "ties", "parameters": {"density": 0.2}},
        output={"dir": "out"},
    )


def run(*arguments: str) -> tuple[float, str]:
    """CPU seconds of a command in a process of its own, and what it printed; no heavy library may be loaded."""
    code = (
        "import atexit, os, sys\n"
        "def tell():\n"
        f"    print('heavy:', [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
        "    times = os.times(); print(times.user + times.system, file=sys.stderr)\n"
        "atexit.register(tell)\n"
        f"sys.argv = ['mcompose', *{list(arguments)!r}]\n"
        "from mcompose.cli.app import main\n"
        "main()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[-2] == "heavy: []", result.stderr
    return float(result.stderr.splitlines()[-1]), result.stdout


def least(*arguments: str) -> float:
    """The least of three: what else runs on the machine costs nothing here."""
    return min(run(*arguments)[0] for _ in range(3))


def test_help_and_inspect_load_no_heavy_library(recipe):
    run("--help")
    run("inspect", str(recipe.parent / "llava"))


@pytest.mark.cost
def test_help_takes_a_third_of_a_second():
    assert least("--help") <= 0.3


@pytest.mark.cost
def test_a_plan_of_7b_models_takes_a_second(recipe):
    assert least("plan", str(recipe)) <= 1.0


@pytest.mark.cost
def test_a_plan_of_70b_models_takes_three_seconds(large_recipe):
    assert least("plan", str(large_recipe)) <= 3.0


@pytest.mark.cost
def test_inspecting_7b_models_takes_a_second(recipe):
    assert least("inspect", *(str(recipe.parent / name) for name in ("llava", "expert"))) <= 1.0


def test_the_plan_of_7b_models_counts_right(recipe):
    plan = json.loads(run("plan", str(recipe), "--json")[1])
    assert plan["format"] == "native"
    assert plan["actions"] == {"merged": 291, "copied": 395}
    # LLaVA 1.5 7B has 7,063,427,072 parameters
    assert plan["bytes_to_write"] == 2 * 7_063_427_072
    written = {job["name"]: job for job in plan["jobs"]}
    head = written["language_model.lm_head.weight"]
    assert (head["shape"], head["note"]) == ([32064, 4096], "rows 32000-32063 from sees")
    language_bytes = 2 * (32000 * 4096 * 2 + 4096 + 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096))
    assert plan["bytes_to_read"] == plan["bytes_to_write"] + 2 * language_bytes


def test_the_plan_of_70b_models_counts_right(large_recipe):
    plan = json.loads(run("plan", str(large_recipe), "--json")[1])
    assert plan["actions"] == {"merged": 723}
    # Llama 2 70B has 68,976,648,192 parameters
    assert plan["bytes_to_write"] == 2 * 68_976_648_192
    assert plan["bytes_to_read"] == 5 * plan["bytes_to_write"]
