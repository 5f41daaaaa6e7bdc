"""Lets test modules import what they share: ``tiny_models``; and gives tests the Ctrl-C that they are about."""

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell leaves it to what it runs behind itself
    signal.signal(signal.SIGINT, signal.default_int_handler)
