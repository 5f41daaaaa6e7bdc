"""Runs code in a fresh process that knows one fake Hub only: the libraries read their settings at import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from fake_hub import WRITE_TOKEN, FakeHub


def run_client(
    hub: FakeHub, home: Path, code: str, *, token: str | None = WRITE_TOKEN, plain: bool = False, **extra: str
) -> tuple[Any, str]:
    """Runs Python code in a fresh process that knows this Hub only.

    The code leaves its answer in ``result`` (anything that JSON holds). An mcompose error becomes
    ``{"error": class, "message": ..., "hint": ..., "text": the whole traceback}``. With ``plain``, mcompose cannot
    be imported.

    Returns:
        The answer, and everything that the process printed.
    """
    keep = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}
    settings = keep | hub.environment(home, token=token) | {"OMP_NUM_THREADS": "1"} | extra
    done = subprocess.run(
        [sys.executable, "-c", _PLAIN if plain else _CLIENT, code],
        env=settings,
        cwd=home.parent,
        capture_output=True,
        text=True,
        timeout=170,
    )
    printed, _, answer = done.stdout.rpartition("RESULT ")
    if done.returncode or not answer:
        raise AssertionError(done.stdout + done.stderr)
    return json.loads(answer), printed + done.stderr


_CLIENT = """
import json, sys, time, traceback
from pathlib import Path
from mcompose.errors import McomposeError
time.sleep = lambda seconds: None
names = {"Path": Path, "result": None}
try:
    exec(sys.argv[1], names)
    result = names["result"]
except McomposeError as error:
    text = traceback.format_exc()
    result = {"error": type(error).__name__, "message": error.message, "hint": error.hint, "text": text}
print("RESULT " + json.dumps(result, default=str))
"""

_PLAIN = """
import json, sys
from pathlib import Path
sys.modules["mcompose"] = None
names = {"Path": Path, "result": None}
exec(sys.argv[1], names)
print("RESULT " + json.dumps(names["result"]))
"""
