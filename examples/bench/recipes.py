"""The same merge in both tools' files.

mcompose's ``rescale: mergekit`` makes dare_ties restore each delta's sum of absolute values, as mergekit does; all
other defaults are the same on both sides. mergekit computes deltas in its ``dtype``, mcompose in float32.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

SOURCES = ("a", "b", "c")
METHODS: dict[str, dict[str, object]] = {
    "linear": {"weight": 1 / 3},
    "slerp": {},
    "task_arithmetic": {"weight": 0.4},
    "ties": {"weight": 1.0, "density": 0.2},
    "dare_ties": {"weight": 0.4, "density": 0.5},
}
DELTA_METHODS = ("task_arithmetic", "ties", "dare_ties")


def merged(method: str, sources: Sequence[str] = SOURCES) -> list[str]:
    """Returns the checkpoints whose weights a method reads."""
    named = list(sources[:2]) if method == "slerp" else list(sources)
    return ["base", *named] if method in DELTA_METHODS else named


def mcompose_command(folder: Path, method: str, sources: Sequence[str] = SOURCES) -> list[str]:
    """Writes the recipe of one method and returns the command; the output is ``folder/mcompose-<method>``."""
    setting = dict(METHODS[method])
    names = [name for name in merged(method, sources) if name != "base"]
    merge: dict[str, object] = {"method": method, "dtype": "bfloat16"}
    if "weight" in setting:
        weight = 1 / len(names) if method == "linear" else setting["weight"]
        merge["weights"] = dict.fromkeys(names, weight)
        del setting["weight"]
    merge["parameters"] = setting | {"slerp": {"t": 0.5}, "dare_ties": {"rescale": "mergekit"}}.get(method, {})
    recipe: dict[str, object] = {
        "schema": 1,
        "name": method,
        "base": "local:base",
        "sources": [{"name": name, "model": f"local:{name}"} for name in names],
        "merge": merge,
        "output": {"dir": f"mcompose-{method}"},
    }
    path = folder / f"mcompose-{method}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return [_script("mcompose"), "merge", str(path), "-o", str(folder / f"mcompose-{method}"), "--quiet"]


def mergekit_command(folder: Path, method: str, *, dtype: str = "bfloat16") -> list[str]:
    """Writes mergekit's file of the same merge and returns the command; the output is ``folder/mergekit-<method>``.

    Args:
        folder: Folder of the checkpoints.
        method: One of METHODS.
        dtype: Dtype in which mergekit computes deltas; the output is always bfloat16.
    """
    names = [name for name in merged(method) if name != "base"]
    models = [{"model": str(folder / name), "parameters": dict(METHODS[method])} for name in names]
    config: dict[str, object] = {
        "merge_method": method, "dtype": dtype, "out_dtype": "bfloat16", "models": models,
    }  # fmt: skip
    if method == "slerp":
        config |= {"base_model": str(folder / "a"), "parameters": {"t": 0.5}}
    elif method in DELTA_METHODS:
        config["base_model"] = str(folder / "base")
    path = folder / f"mergekit-{method}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    output = str(folder / f"mergekit-{method}")
    return [_script("mergekit-yaml"), str(path), output, "--no-copy-tokenizer", "--quiet"]


def _script(name: str) -> str:
    return str(Path(sys.executable).parent / name)
