"""Runs a command and tells what it cost."""

import json
import os
import platform
import resource
import statistics
import subprocess
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """What one run of a command cost: seconds of wall and CPU, bytes of peak resident memory."""

    wall: float
    cpu: float
    peak: int


def run(command: list[str], *, env: dict[str, str] | None = None) -> Cost:
    """Runs a command to its end.

    Raises:
        RuntimeError: It failed; its output is shown.
    """
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})}
    )
    output = process.stdout.read() if process.stdout else b""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{output.decode(errors='replace')[-2000:]}")
    # ru_maxrss counts kilobytes on Linux and bytes on macOS.
    unit = 1 if platform.system() == "Darwin" else 1024
    return Cost(time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)


def summary(costs: list[Cost]) -> str:
    """Median and range of wall time, median CPU, largest memory."""
    walls = sorted(cost.wall for cost in costs)
    cpu = statistics.median(cost.cpu for cost in costs)
    peak = max(cost.peak for cost in costs) / 1e6
    spread = f"{walls[0]:.2f} to {walls[-1]:.2f}"
    return f"{statistics.median(walls):7.2f} s ({spread})   CPU {cpu:7.2f} s   peak {peak:6.0f} MB"


def save(path: Path, results: dict[str, list[Cost]], **settings: object) -> None:
    """Writes all runs with machine and versions."""
    table = {
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "versions": {name: version(name) for name in ("mcompose", "mergekit", "numpy", "numba", "torch")},
        "python": platform.python_version(),
        "load": os.getloadavg(),
        "limits": {"address_space": resource.getrlimit(resource.RLIMIT_AS)[0]},
        "settings": settings,
        "runs": {name: [asdict(cost) for cost in costs] for name, costs in results.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table, indent=1) + "\n")
