"""The description of the machine, and the results file."""

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from examples.bench.measure import memory
from examples.bench.turn import Turn


def machine() -> dict[str, object]:
    """Returns processor, cores, memory, load and versions; call it before the first run."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "load_before": os.getloadavg(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("mcompose", "mergekit", "numpy", "numba", "torch")},
        "measuring_process_peak_bytes": memory("self").get("VmHWM", 0),
    }


def save(path: Path, turns: Sequence[Turn], **facts: object) -> None:
    """Writes all runs and further facts about them as JSON."""
    results = {**facts, "runs": [turn.to_dict() for turn in turns]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
