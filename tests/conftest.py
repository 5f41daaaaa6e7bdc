"""What every test stands on, whatever the shell has set: threads, network, caches, drawn inputs, and Ctrl-C.

This file is read before numpy, torch and the Hub's client, which look at their variables once; processes that tests
start inherit them.
"""

import os
import signal
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(Path(__file__).parent))

# What a shell, another job or a CI service may have set, and would change what is computed, fetched or printed.
FOREIGN = (
    "ACCELERATE_", "BLIS_", "COLUMNS", "FORCE_COLOR", "GITHUB_ACTIONS", "GOMP_", "GOTO_", "HF_", "HUGGING", "KMP_",
    "LINES", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_", "MCOMPOSE_ENDPOINT", "MKL_", "MPL",
    "NO_COLOR", "NUMBA_", "OMP_", "OPENBLAS_NUM", "PYTORCH_", "PY_COLORS", "PYTHONHASHSEED", "PYTHONWARNINGS", "RANK",
    "TERMINAL_WIDTH", "TOKENIZERS_", "TORCH", "TRANSFORMERS_", "WORLD_SIZE", "XDG_",
)  # fmt: skip
threads = os.environ.get("OMP_NUM_THREADS", "1")
for name in [name for name in os.environ if name.startswith(FOREIGN)]:
    del os.environ[name]
os.environ |= {
    "OMP_NUM_THREADS": threads,  # one, as several test processes share the cores; the suite passes with any number
    "HF_HUB_OFFLINE": "1",
    "XDG_CACHE_HOME": str(ROOT / ".pytest_cache" / "caches"),  # machine code is compiled once, not for every run
    "XDG_CONFIG_HOME": str(ROOT / ".pytest_cache" / "config"),
}

# The clock of a busy machine fails no test. `make fuzz` draws new inputs at every run and remembers what failed.
settings.register_profile("fuzz", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("fuzz"), max_examples=100, derandomize=True, database=None)
settings.load_profile("same")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell leaves it to what it runs behind itself
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    """Without this, drawn inputs depend on which modules happen to be loaded: constants of theirs are among them."""
    if (config.getoption("--hypothesis-profile", None) or "same") == "same":
        from hypothesis.internal.conjecture import providers

        constants = providers.Constants()
        providers._get_local_constants = lambda: constants
