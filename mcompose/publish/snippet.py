"""The code on the model card that loads the model and asks it something. It runs as it stands.

Every input is a stand-in that needs no file (a white picture, silence), with the reader's own beside it in a comment.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mcompose.ledger import Ledger

__all__ = ["usage_snippet"]


@dataclass(frozen=True)
class _Stand:
    """A stand-in for one modality: the processor's argument, its value, and what the reader puts there."""

    argument: str
    value: str
    yours: str
    imports: str
    question: str


_AUTO = "AutoModelForMultimodalLM"
_GENERATING = (_AUTO, "AutoModelForImageTextToText", "AutoModelForCausalLM")

_PICTURE, _NUMPY = "from PIL import Image", "import numpy as np"
_SOUND, _FRAMES = "np.zeros(16000, dtype=np.float32)", "np.zeros((8, 224, 224, 3), dtype=np.uint8)"

_STANDS = {
    "image": _Stand("images", 'Image.new("RGB", (336, 336), "white")', 'Image.open("picture.png")', _PICTURE, "see"),
    "audio": _Stand("audio", _SOUND, "one channel, 16,000 numbers a second", _NUMPY, "hear"),
    "video": _Stand("videos", _FRAMES, "frames, height, width, RGB", _NUMPY, "see"),
    "points": _Stand("points", "np.zeros((128, 3), dtype=np.float32)", "points, x y z", _NUMPY, "find"),
}


def usage_snippet(ledger: Ledger, folder: Path, *, path: str) -> str:
    """Writes Python code that loads the output and generates an answer.

    Args:
        ledger: Says the format and the modalities.
        folder: The output; its config names the class, its chat template decides the prompt.
        path: Repository id or folder that the code loads.

    Returns:
        The code, without a fence.
    """
    if ledger.output_format == "text":
        return _text_snippet(path)
    config = _json(folder / "config.json")
    composed = ledger.output_format == "composed"
    own_code = composed or "auto_map" in config
    loader = _AUTO if composed else _auto_name(config) if own_code else _class_name(config)
    modalities = [m for m in ledger.modalities if m in _STANDS]
    chat = not own_code and _has_chat_template(folder)
    imports = dict.fromkeys(_STANDS[m].imports for m in modalities)
    trust = ", trust_remote_code=True" if own_code else ""
    names = ", ".join(sorted([loader, "AutoProcessor"]))
    lines = [
        *(["# pip install onnxruntime"] if ledger.files else []),  # a graph of an expert, here or by reference
        *sorted(imports, key=lambda line: line.split()[1].lower()),
        f"from transformers import {names}",
        "",
        f"path = {json.dumps(path)}  # or the folder that holds it",
        f"processor = AutoProcessor.from_pretrained(path{trust})",
        f'model = {loader}.from_pretrained(path, dtype="auto"{trust})',
        "",
        *(_chat_inputs(modalities) if chat else _plain_inputs(modalities, own_code=own_code)),
        *_ANSWER,
    ]
    return "\n".join(lines)


_ANSWER = (
    "answer = model.generate(**inputs, max_new_tokens=32)",
    'new = answer[0, inputs["input_ids"].shape[1] :]',
    "print(processor.decode(new, skip_special_tokens=True))",
)


def _text_snippet(path: str) -> str:
    return "\n".join([
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"path = {json.dumps(path)}  # or the folder that holds it",
        "tokenizer = AutoTokenizer.from_pretrained(path)",
        'model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")',
        "",
        'inputs = tokenizer("The capital of France is", return_tensors="pt")',
        "answer = model.generate(**inputs, max_new_tokens=32)",
        "print(tokenizer.decode(answer[0], skip_special_tokens=True))",
    ])  # fmt: skip


def _plain_inputs(modalities: Sequence[str], *, own_code: bool) -> list[str]:
    """Writes a call of the processor with placeholders in the text."""
    if own_code:
        text = '"' + "".join(f"<{m}>\\n" for m in modalities) + _question(modalities) + '"'
    else:
        marks = "".join(f"{{processor.{m}_token}}\\n" for m in modalities)
        text = f'f"{marks}{_question(modalities)}"'
    media = [f"    {s.argument}={s.value},  # yours: {s.yours}" for s in (_STANDS[m] for m in modalities)]
    call = ["inputs = processor(", f"    text={text},", *media, '    return_tensors="pt",']
    return [*call, ").to(model.device, model.dtype)"]


def _chat_inputs(modalities: Sequence[str]) -> list[str]:
    """Writes a conversation for the checkpoint's own chat template."""
    media = [f'    {{"type": "{m}", "{m}": {_STANDS[m].value}}},  # yours: {_STANDS[m].yours}' for m in modalities]
    return [
        "content = [",
        *media,
        f'    {{"type": "text", "text": "{_question(modalities)}"}},',
        "]",
        "inputs = processor.apply_chat_template(",
        '    [{"role": "user", "content": content}],',
        "    add_generation_prompt=True,",
        "    tokenize=True,",
        "    return_dict=True,",
        '    return_tensors="pt",',
        ").to(model.device, model.dtype)",
    ]


def _question(modalities: Sequence[str]) -> str:
    verbs = list(dict.fromkeys(_STANDS[m].question for m in modalities))
    return f"What do you {' and '.join(verbs)}?" if verbs else "Who are you?"


def _auto_name(config: dict[str, Any]) -> str:
    """Returns the Auto class under which a checkpoint registers its own generating class."""
    table = config.get("auto_map")
    known = [name for name in _GENERATING if isinstance(table, dict) and name in table]
    return known[0] if known else _AUTO


def _class_name(config: dict[str, Any]) -> str:
    names = config.get("architectures")
    first = cast("list[Any]", names)[0] if isinstance(names, list) and names else ""
    return str(first) if str(first).isidentifier() else _AUTO


def _has_chat_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    return any("chat_template" in _json(folder / f"{kind}_config.json") for kind in ("tokenizer", "processor"))


def _json(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", table) if isinstance(table, dict) else {}
