"""The results file of ``examples.bench.merge`` as Markdown.

python -m examples.bench.table build/bench/8-layers/results-warm.json
"""

import json
import statistics
import sys
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

from examples.bench.ratio import ratio

Runs = list[dict[str, Any]]
TOOLS = ("cp", "cat + cp", "mcompose", "mergekit")
FIGURES: dict[str, Callable[[dict[str, Any]], float]] = {
    "wall": itemgetter("wall"),
    "CPU": lambda run: run["user"] + run["system"],
    "peak": itemgetter("peak"),
    "anonymous": itemgetter("anonymous"),
}


def runs_of(results: dict[str, Any], method: str, tool: str) -> Runs:
    """Returns the measured rounds of one tool, in order."""
    return [run for run in results["runs"] if run["label"] == method and run["tool"] == tool and run["number"]]


def cost_row(method: str, tool: str, runs: Runs) -> str:
    """Formats the cost of one tool: medians, ranges, the best run."""
    walls = [run["wall"] for run in runs]
    cpu, system = map(FIGURES["CPU"], runs), (run["system"] for run in runs)
    gb = {name: max(run[name] for run in runs) / 1e9 for name in ("peak", "anonymous", "read", "written")}
    return (
        f"| {method} | {tool} | {len(runs)} | {statistics.median(walls):.2f} ({min(walls):.2f} to {max(walls):.2f})"
        f" | {statistics.median(cpu):.2f} | {statistics.median(system):.2f}"
        f" | {1000 * gb['peak']:.0f} | {1000 * gb['anonymous']:.0f} | {gb['read']:.2f} | {gb['written']:.2f} |"
    )


def ratio_row(results: dict[str, Any], method: str) -> str:
    """Formats one method's ratios, round by round; for wall times also that of the best runs."""
    sets = {tool: runs_of(results, method, tool) for tool in TOOLS}

    def of(over: str, under: str, figure: str) -> str:
        if not sets[over] or not sets[under]:
            return "-"
        quotient = ratio(*([FIGURES[figure](run) for run in sets[tool]] for tool in (over, under)))
        return f"{quotient}, best {quotient.best:.3g}" if figure == "wall" else str(quotient)

    cells = [of("mergekit", "mcompose", figure) for figure in FIGURES]
    cells += [of("mcompose", floor, "wall") for floor in ("cp", "cat + cp")]
    return f"| {method} | {' | '.join(cells)} |"


def agreement(method: str, found: dict[str, Any]) -> str:
    """Describes the two outputs of a method in one sentence."""
    if found["kind"] == "elements":
        left_out = f" outside the {found['left_out']:.2%} of threshold ties" if found["left_out"] else ""
        return (
            f"- {method}: {found['equal']:.3%} of the elements are equal{left_out}, {found['within_one_step']:.3%}"
            f" within one bfloat16 step; largest difference {found['largest_difference']:.2g}"
        )
    sides = [
        f"{tool} changes {of['changed']:.3%} of the elements, mean {of['mean']:.2g}, mean magnitude"
        f" {of['magnitude']:.5g}, deviation {of['deviation']:.5g}"
        for tool, of in found.items()
        if tool != "kind"
    ]
    return f"- {method} (masks differ by design): {'; '.join(sides)}"


def heading(*names: str) -> list[str]:
    """Returns the two heading lines of a table."""
    return [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]


def render(results: dict[str, Any]) -> str:
    """Formats the whole table: machine, costs, ratios, agreement."""
    machine, settings = results["machine"], results["settings"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 1e9:.0f} GB, "
        f"load before {machine['load_before'][0]:.2f}; {settings['checkpoint_bytes'] / 1e9:.2f} GB per checkpoint, "
        f"{settings['cache']} cache, mergekit {machine['versions']['mergekit']} in {settings['peer_dtype']}",
        "",
        *heading("merge", "tool", "n", "wall s: median (range)", "CPU s", "of it system", "peak MB", "anonymous MB",
                 "GB read", "GB written"),
    ]  # fmt: skip
    methods = list(dict.fromkeys(run["label"] for run in results["runs"]))
    for method in methods:
        lines += [cost_row(method, tool, runs) for tool in TOOLS if (runs := runs_of(results, method, tool))]
    lines += [
        "",
        *heading("merge", *(f"mergekit / mcompose {name}" for name in FIGURES), "mcompose / cp wall",
                 "mcompose / (cat + cp) wall"),
        *(ratio_row(results, method) for method in methods),
        "",
        *(agreement(method, found) for method, found in results["agreement"].items()),
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    print(render(json.loads(Path(sys.argv[1]).read_text())))
