"""mcompose beside mergekit and ``cp``, on random Llama checkpoints in bfloat16.

    make bench
    python -m examples.bench.merge --gb 0.25 --rounds 1 --methods linear ties

Builds a base and three fine-tunes once (``build/bench``), then runs every method in turn, interleaved, so that a noisy
moment of the machine hits both. The page cache is warm: one unmeasured run of each comes first. The outputs of the two
tools are compared, and every run is saved with machine and versions.
"""

import argparse
import shutil
import statistics
import sys
from pathlib import Path

import yaml

from examples.bench.measure import Cost, run, save, summary

FOLDER = Path("build/bench")
METHODS: dict[str, dict[str, object]] = {
    "linear": {"weight": 1 / 3},
    "slerp": {},
    "task_arithmetic": {"weight": 0.4},
    "ties": {"weight": 1.0, "density": 0.2},
    "dare_ties": {"weight": 0.4, "density": 0.5},
}


def mcompose_recipe(folder: Path, method: str) -> Path:
    """Writes the recipe of one method."""
    setting = dict(METHODS[method])
    names = ["a", "b"] if method == "slerp" else ["a", "b", "c"]
    merge: dict[str, object] = {"method": method, "dtype": "bfloat16"}
    weight = setting.pop("weight", None)
    if weight is not None:
        merge["weights"] = dict.fromkeys(names, weight)
    merge["parameters"] = {"t": 0.5} if method == "slerp" else setting
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
    return path


def mergekit_config(folder: Path, method: str) -> Path:
    """Writes mergekit's file of the same merge."""
    setting = dict(METHODS[method])
    names = ["a", "b"] if method == "slerp" else ["a", "b", "c"]
    weight = setting.pop("weight", None)
    models = [
        {"model": str(folder / name), "parameters": {**({"weight": weight} if weight else {}), **setting}}
        for name in names
    ]
    config: dict[str, object] = {"merge_method": method, "dtype": "bfloat16", "models": models}
    if method == "slerp":
        config |= {"base_model": str(folder / "a"), "parameters": {"t": 0.5}}
    elif method != "linear":
        config["base_model"] = str(folder / "base")
    path = folder / f"mergekit-{method}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def commands(folder: Path, method: str) -> dict[str, list[str]]:
    """The two commands of one method."""
    scripts = Path(sys.executable).parent
    return {
        f"mcompose {method}": [
            str(scripts / "mcompose"), "merge", str(mcompose_recipe(folder, method)),
            "-o", str(folder / f"mcompose-{method}"), "--quiet",
        ],
        f"mergekit {method}": [
            str(scripts / "mergekit-yaml"), str(mergekit_config(folder, method)), str(folder / f"mergekit-{method}"),
            "--no-copy-tokenizer", "--quiet",
        ],
    }  # fmt: skip


def compare(folder: Path, method: str) -> str:
    """Share of equal elements, and the largest difference. Random methods draw other masks."""
    import torch
    from safetensors import safe_open

    equal = total = 0
    largest = 0.0
    with (
        safe_open(folder / f"mcompose-{method}" / "model.safetensors", "pt") as ours,
        safe_open(next((folder / f"mergekit-{method}").glob("*.safetensors")), "pt") as theirs,
    ):
        for name in ours.keys():  # noqa: SIM118 - safe_open is no mapping
            a, b = ours.get_tensor(name).float(), theirs.get_tensor(name).float()
            equal += int(torch.count_nonzero(a == b))
            total += a.numel()
            largest = max(largest, float((a - b).abs().max()))
    return f"{100 * equal / total:.2f} % of the elements are equal, largest difference {largest:.2g}"


def measure(folder: Path, plan: dict[str, list[str]], rounds: int) -> dict[str, list[Cost]]:
    """Runs all commands in turn, after one unmeasured round."""
    costs: dict[str, list[Cost]] = {name: [] for name in plan}
    for number in range(rounds + 1):
        for name, command in plan.items():
            shutil.rmtree(folder / name.replace(" ", "-"), ignore_errors=True)
            cost = run(command)
            if number:
                costs[name].append(cost)
            print(f"  {'warm-up' if not number else f'round {number}'}  {name:26} {cost.wall:7.2f} s", file=sys.stderr)
    return costs


def main() -> None:
    """Runs the benchmark and prints the table."""
    parser = argparse.ArgumentParser(description="mcompose beside mergekit and cp.")
    parser.add_argument("--gb", type=float, default=1.0, help="size of one checkpoint in GB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    options = parser.parse_args()
    layers = max(1, round(options.gb * 1e9 / 2 / 61e6))
    folder = (FOLDER / f"{layers}-layers").resolve()
    # In a process of their own: a child's peak memory starts from its parent's.
    run([sys.executable, "-m", "examples.bench.build", str(folder), str(layers)])
    plan = {"cp": ["cp", str(folder / "a" / "model.safetensors"), str(folder / "cp")]}
    for method in options.methods:
        plan |= commands(folder, method)
    costs = measure(folder, plan, options.rounds)
    save(folder / "results.json", costs, gb=options.gb, rounds=options.rounds, cache="warm")
    for name, runs in costs.items():
        print(f"{name:26} {summary(runs)}")
    median = {name: statistics.median(cost.wall for cost in runs) for name, runs in costs.items()}
    for method in options.methods:
        ours, theirs = median[f"mcompose {method}"], median[f"mergekit {method}"]
        faster, of_cp = theirs / ours, ours / median["cp"]
        print(f"{method}: {faster:.1f} x mergekit's speed, {of_cp:.1f} x cp; {compare(folder, method)}")


if __name__ == "__main__":
    main()
