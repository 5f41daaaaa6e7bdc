"""A composition made by the merge itself goes to the Hub; its card's own snippet loads it without mcompose."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from fake_hub import FakeHub
from hub_client import run_client
from publish_samples import composed_output

pytestmark = pytest.mark.slow

REPO = "tester/sees-and-hears"

LOGITS = """
import hashlib
import numpy as np, torch
from PIL import Image
from transformers import AutoModelForMultimodalLM, AutoProcessor
processor = AutoProcessor.from_pretrained({path!r}, trust_remote_code=True)
model = AutoModelForMultimodalLM.from_pretrained({path!r}, trust_remote_code=True).eval()
inputs = processor(
    text="<image> <audio> What do you see?",
    images=Image.frombytes("RGB", (28, 28), bytes(range(256)) * 9 + bytes(48)),
    audio=np.sin(np.arange(8000, dtype=np.float32) / 5),
    sampling_rate=16000,
)
with torch.no_grad():
    logits = model(**inputs).logits
result = [type(model).__name__, list(logits.shape), hashlib.sha256(logits.numpy().tobytes()).hexdigest()]
"""


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    home = tmp_path_factory.mktemp("composed")
    folder = composed_output(home)
    code = f"from mcompose.publish import push\nresult = push(Path({str(folder)!r}), {REPO!r}).to_dict()"
    with FakeHub() as hub:
        report, _ = run_client(hub, home / "cache", code)
        yield hub, folder, report


def test_publish_composed_card_snippet_runs_from_the_hub(pushed, tmp_path):
    hub, folder, report = pushed
    card = hub.repos[REPO].files["README.md"].data.decode()
    assert report["card"] == "written", "the merge's own card was refreshed for the repository"
    assert card == (folder / "README.md").read_text(encoding="utf-8")
    snippet = re.search(r"```python\n(.*?)\n```", card, re.DOTALL)
    assert snippet
    assert f'path = "{REPO}"' in snippet[1]
    assert 'text="<image>\\n<audio>\\nWhat do you see and hear?"' in snippet[1]
    code = snippet[1] + "\nresult = [type(model).__name__, new.shape[0]]"
    (name, length), _ = run_client(hub, tmp_path / "home", code, plain=True)
    assert name == "ComposedForConditionalGeneration"
    assert 0 < length <= 32


def test_publish_composed_logits_survive_the_hub(pushed, tmp_path):
    hub, folder, _ = pushed
    here, _ = run_client(hub, tmp_path / "a", LOGITS.format(path=str(folder)), plain=True)
    there, _ = run_client(hub, tmp_path / "b", LOGITS.format(path=REPO), plain=True)
    assert here == there
    assert here[0] == "ComposedForConditionalGeneration"
