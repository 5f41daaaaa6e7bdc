"""``python -m examples.families``: what every family of transformers does, as data and as a page."""

from __future__ import annotations

import argparse
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from examples.families.compare import Finding, compare_family, compare_text
from mcompose.anatomy import language_classes
from mcompose.compose import PROVEN_FILE
from mcompose.modeling import refusal
from mcompose.whole_files import write_json, write_text

PAGE = Path(__file__).parents[2] / "docs" / "families.md"

GOOD = ("exact", "near")
_IMAGE, _AUDIO, _BOTH = ("image",), ("audio",), ("image", "video")
TESTED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("llava", "vipllava", "llava_next", "got_ocr2", "paligemma", "gemma3", "mistral3"), _IMAGE),
    **dict.fromkeys(("ovis2", "idefics2", "idefics3", "deepseek_vl", "aria"), _IMAGE),
    **dict.fromkeys(
        ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "video_llava", "llava_next_video", "llava_onevision"), _BOTH
    ),
    **dict.fromkeys(("video_llama_3", "internvl", "smolvlm"), _BOTH),
    **dict.fromkeys(("qwen2_audio", "voxtral", "granite_speech", "audioflamingo3", "glmasr", "qwen3_asr"), _AUDIO),
    "qwen2_5_omni_thinker": ("image", "video", "audio"),
}
"""Families whose tiny configs are written by hand in ``tests/tiny_configs.py``: ``test_modeling_fidelity`` compares
them at every run, and what is compared."""
TESTED_TEXTS = ("aria_text", "gemma3_text", "qwen2_5_omni_text", "qwen2_5_vl_text", "qwen2_vl_text")
"""Types of language models that these bring and that stand in no other family."""


def main() -> None:
    """Compares all families, or those that are named, and prints a line for each."""
    parser = argparse.ArgumentParser(prog="python -m examples.families", description=__doc__)
    parser.add_argument("model_type", nargs="*", help="families; all without any")
    parser.add_argument("--text", action="store_true", help="language models instead of multimodal families")
    parser.add_argument("--write", action="store_true", help="write what was shown: proven.json")
    parser.add_argument("--seconds", type=int, default=60, help="for one family")
    chosen = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    chosen_types = chosen.model_type or (text_types() if chosen.text else multimodal_types())
    families = [told(kind, text=chosen.text, seconds=chosen.seconds) for kind in chosen_types]
    if chosen.write:
        texts = [told(kind, text=True, seconds=chosen.seconds) for kind in text_types()]
        write_json(PROVEN_FILE, proven(families, texts))
        write_text(PAGE, page(families))


def told(kind: str, *, text: bool, seconds: int) -> Finding:
    """Compares one family and prints its line."""
    finding = find(kind, text=text, seconds=seconds)
    compared = ", ".join(["text", *finding.modalities]) if finding.differences else ""
    print(f"{kind:28} {finding.verdict:10} {compared:24} {finding.reason}", flush=True)
    return finding


def page(families: Sequence[Finding]) -> str:
    """Returns the page of all multimodal families.

    Args:
        families: Their findings.
    """
    rows = [
        f"| {one.model_type} | {_verdict(one)} | {', '.join(_compared(one))} | {_remark(one)} |" for one in families
    ]
    count = sum(_verdict(one) == "composes" for one in families)
    return (
        "# Families\n\n"
        "Written by `python -m examples.families --write`: every family on a tiny seeded checkpoint, composed alone, "
        "loaded again, and compared with its own class on text, media, left padding and a greedy answer "
        f"(transformers {transformers.__version__}). {count} of {len(families)} compose; the others are refused in "
        "composed outputs, and merge natively where all sources are of their class.\n\n"
        "| family | in composed outputs | compared | remark |\n| --- | --- | --- | --- |\n" + "\n".join(rows) + "\n"
    )


def _verdict(one: Finding) -> str:
    return "composes" if one.model_type in TESTED or one.verdict in GOOD else "refused"


def _remark(one: Finding) -> str:
    if reason := refusal(one.model_type):
        return reason
    if one.verdict == "not tried":
        return (
            "" if one.model_type in TESTED else "not compared yet: no rule makes a tiny checkpoint and a medium for it"
        )
    return one.reason.replace("|", "/")[:160]


def _compared(one: Finding) -> list[str]:
    found = [*TESTED.get(one.model_type, ()), *(one.modalities if one.verdict in GOOD else ())]
    return list(dict.fromkeys(["text", *found])) if found else []


def proven(families: Sequence[Finding], texts: Sequence[Finding]) -> dict[str, Any]:
    """Returns what ``compose/proven.py`` reads: families with what was compared, and types of language models.

    Args:
        families: Findings of multimodal families.
        texts: Findings of language models inside LLaVA.
    """
    failed = [one.model_type for one in families if one.model_type in TESTED and one.verdict in ("wrong", "fails")]
    if failed:
        raise SystemExit(f"Not written: {', '.join(failed)} is compared by the tests, and is not right here.")
    shown = {one.model_type: one for one in families if one.verdict in GOOD}
    compared = {kind: list(TESTED.get(kind, ())) for kind in sorted({*shown, *TESTED})}
    for kind, one in shown.items():
        compared[kind] += [modality for modality in one.modalities if modality not in compared[kind]]
    own = [one.text_type for one in shown.values()]
    return {
        "transformers": transformers.__version__,
        "families": compared,
        "language_models": sorted({*TESTED_TEXTS, *own, *(one.model_type for one in texts if one.verdict in GOOD)}),
    }


def find(kind: str, *, text: bool, seconds: int) -> Finding:
    """Compares one family, in a time limit: some default configs cannot be made small."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"no answer in {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        with tempfile.TemporaryDirectory(prefix="family-") as folder:
            return (compare_text if text else compare_family)(kind, Path(folder))
    except TimeoutError as error:
        return Finding(kind, "not tried", str(error))
    finally:
        signal.alarm(0)


def text_types() -> list[str]:
    """Returns the types of language models that stand alone."""
    return [kind for kind in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) if kind in CONFIG_MAPPING and _is_text(kind)]


def multimodal_types() -> list[str]:
    """Returns the types that read more than text."""
    return [kind for kind in sorted(language_classes()) if kind in CONFIG_MAPPING and not _is_text(kind)]


def _is_text(kind: str) -> bool:
    try:
        config = CONFIG_MAPPING[kind]()
        return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and config.get_text_config(decoder=True) is config
    except Exception:  # noqa: BLE001 - a config without defaults
        return False


if __name__ == "__main__":
    main()
