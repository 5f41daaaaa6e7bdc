"""Merges one recipe of each kind with this code and with that of another commit, and compares what they write.

``python -m examples.same_bytes COMMIT`` makes tiny seeded sources, checks the other commit out beside them, runs
``mcompose merge`` of both on the same recipes and prints one line per recipe: whether all weight files are equal, and
which other files differ. It exits with 1 when a weight file differs. Use it for changes that must not change a result.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
TWO = ("sees", "hears")
METHODS: dict[str, dict[str, Any]] = {
    "naivemc": {},
    "linear": {"weights": {"sees": 0.3, "hears": 0.7}},
    "slerp": {"parameters": {"t": 0.3}},
    "task_arithmetic": {"parameters": {"lambda": 0.7}},
    "ties": {"parameters": {"density": 0.4}},
    "dare_ties": {"parameters": {"density": 0.5}, "seed": 3},
    "della": {"parameters": {"density": 0.5, "epsilon": 0.2}, "seed": 3},
    "breadcrumbs": {"parameters": {"density": 0.6, "gamma": 0.1}},
    "model_stock": {},
    "karcher": {},
    "tsv": {},
    "iso-c": {},
}
WITHOUT_BASE = ("slerp", "karcher")


def main() -> int:
    """Compares, and returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("commit", help="commit to compare this working tree with")
    commit = parser.parse_args().commit
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        subprocess.run(["git", "worktree", "add", "--detach", str(work / "other"), commit], check=True, cwd=ROOT)
        try:
            return _compare(work)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(work / "other")], check=True, cwd=ROOT)


def _compare(work: Path) -> int:
    recipes = _write_recipes(work / "sources")
    different = 0
    for recipe in recipes:
        outputs = []
        for tree in (ROOT, work / "other"):
            output = work / f"{recipe.stem}-{len(outputs)}"
            command = [sys.executable, "-m", "mcompose", "merge", str(recipe), "-o", str(output), "--quiet"]
            environment = {**os.environ, "PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"}
            subprocess.run(command, check=True, cwd=work, env=environment, stdout=subprocess.DEVNULL)
            outputs.append(_digests(output))
        names = [name for name in {**outputs[0], **outputs[1]} if outputs[0].get(name) != outputs[1].get(name)]
        weights = [name for name in names if name.endswith((".safetensors", ".onnx"))]
        others = [name for name in names if name not in weights and not name.endswith(".py")]
        different += bool(weights)
        print(
            f"{recipe.stem:24} weights {'DIFFER' if weights else 'equal'}; other files that differ: {others or 'none'}"
        )
    print(f"{len(recipes)} recipes, {different} with different weights")
    return 1 if different else 0


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _write_recipes(folder: Path) -> list[Path]:
    """Writes the sources and one recipe of each kind; returns the recipes."""
    sys.path.insert(0, str(ROOT / "tests"))  # the sources are those of the tests
    from damc_sources import write_donor, write_natives
    from tiny_experts import write_expert
    from tiny_sources import write_family

    family, natives, experts = folder / "family", folder / "natives", folder / "experts"
    write_family(family)
    write_natives(natives)
    write_natives(natives / "base-too", change=0.0)
    for name in ("clip", "whisper"):
        write_expert(name, experts / name)
    donors = [write_donor(folder / "donors", natives, name, kind="low-rank", prefixes=True) for name in TWO]
    recipes: dict[str, dict[str, Any]] = {}
    for method, merge in METHODS.items():
        base = {} if method in WITHOUT_BASE else {"base": natives / "base"}
        recipes[method] = _recipe({name: natives / name for name in TWO}, {"method": method, **merge}, **base)
    ordinary = {name: natives / name for name in (*TWO, "feels")}
    damc = {"method": "damc"}
    recipes["damc-convert"] = _recipe(ordinary, damc, natives / "base", compose={"decouple": "convert"})
    trained = dict(zip(TWO, donors, strict=True))
    recipes["damc-donor"] = _recipe(trained, damc, natives / "base", compose={"decouple": "donor"})
    dense = {"decouple": "donor", "groups": "dense"}
    recipes["damc-dense"] = _recipe(trained, damc, natives / "base", compose=dense)
    beside = {
        "charts": {"encoder": f"local:{experts / 'clip'}", "modality": "image"},
        "speech": {"encoder": f"local:{experts / 'whisper'}", "modality": "audio"},
    }
    recipes["experts"] = _recipe(
        {name: natives / name for name in TWO}, {"method": "linear", "seed": 3}, natives / "base",
        compose={"experts": beside},
    )  # fmt: skip
    one = {"sees": family / "sees", "expert": family / "expert"}
    recipes["native"] = _recipe(one, {"method": "ties"}, family / "base")
    recipes["native-bfloat16"] = _recipe(one, {"method": "naivemc", "dtype": "bfloat16"})
    towers = {"sees": family / "sees", "other": family / "sees-other-tower"}
    mix = {"method": "weight-mix", "parameters": {"beta": 0.6}}
    recipes["towers-merged"] = _recipe(towers, mix, compose={"towers": "merge"})
    texts = {"expert": family / "expert", "base-too": family / "base"}
    recipes["text"] = _recipe(texts, {"method": "linear"})
    written = []
    for name, recipe in recipes.items():
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"schema": 1, "name": name, **recipe}, sort_keys=False), encoding="utf-8")
        written.append(path)
    return written


def _recipe(sources: dict[str, Path], merge: dict[str, Any], base: Path | None = None, **more: Any) -> dict[str, Any]:
    listed = [{"name": name, "model": f"local:{path}"} for name, path in sources.items()]
    return {**({"base": f"local:{base}"} if base else {}), "sources": listed, "merge": merge, **more}


if __name__ == "__main__":
    raise SystemExit(main())
