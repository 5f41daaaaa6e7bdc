"""Reads a donor in the form that the authors of Model Composition released: what each of its tensors is.

Such a donor is a folder with ``config.json`` and one file of everything that was trained on the base: LoRA factors per
group, the projector, and the vectors around media items. Keys, as the paper's code (arXiv:2402.12750) names them::

    ...layers.0.self_attn.q_proj.lora_A.default.weight     factors of the text group
    ...layers.0.self_attn.q_proj.lora_A.vision.weight      factors of a modality's
    ...modal_projectors.vision.0.weight                    the projector: two linear layers, at 0 and 2
    ...prefix_tokens.vision, ...suffix_tokens.vision       vectors before and after an item

Donors whose language model stayed as it was hold the projector alone, in ``mm_projector``. Projectors of other
modalities are other networks (a Q-Former behind BEATs: ``...modal_projectors.audio.audio_Qformer...``); their tensors
are read as a projector's, so that such a donor is refused by its name.

The released files are pickles, which are never opened here: they are converted once, where they are trusted. Nothing of
this layout was tried on the released files themselves, which are not at hand; it follows their code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcompose.checkpoint import TensorEntry, read_header, read_json_object
from mcompose.errors import CheckpointError
from mcompose.modalities import RELEASED_NAMES

__all__ = ["ReleasedDonor", "read_released"]

FILES = ("adapter_model", "non_lora_trainables", "mm_projector")
"""Names without their ends; a donor's tensors are in one or several of them."""
TEXT = "default"
CONVERT = (
    "Convert it where you trust it: `from safetensors.torch import save_file; import torch; "
    "save_file({{k: v.contiguous() for k, v in torch.load('{name}.bin', weights_only=True).items()}}, "
    "'{name}.safetensors')`."
)

_FACTOR = re.compile(r"(?:^|\.)(layers\.\d+\..+)\.lora_([AB])\.([A-Za-z]+)(?:-[A-Za-z]+)?(?:\.weight)?$")
_MERGED = re.compile(r"\.lora_[AB]\.default-")
_PROJECTOR = re.compile(r"(?:^|\.)modal_projectors\.([a-z]+)\.(.+)$")
_LLAVA_PROJECTOR = re.compile(r"(?:^|\.)mm_projector\.(\d+\.(?:weight|bias))$")
_VECTORS = re.compile(r"(?:^|\.)(prefix|suffix)_tokens\.([a-z]+)$")

Factors = dict[str, dict[str, TensorEntry]]


@dataclass(frozen=True)
class ReleasedDonor:
    """A released donor, its headers read.

    Args:
        folder: Its files.
        config: Its ``config.json``.
        modality: What it was trained for.
        scale: Factor of the product of its factors: alpha / rank; 1 without factors.
        text: Linear (``layers.0.self_attn.q_proj``) to its factors ``A`` and ``B``: the text group's; empty for a donor
            whose language model stayed as it was.
        group: The same of the modality's group; empty for a donor without one.
        projector: ``0.weight``, ``0.bias``, ``2.weight``, ``2.bias`` for two linear layers.
        vectors: ``prefix`` and ``suffix``, where there are any but zero of them.
    """

    folder: Path
    config: Mapping[str, Any]
    modality: str
    scale: float
    text: Factors
    group: Factors
    projector: Mapping[str, TensorEntry]
    vectors: Mapping[str, TensorEntry] = field(default_factory=dict)


def read_released(folder: Path, *, alpha: float | None = None) -> ReleasedDonor:
    """Reads the headers of a released donor.

    Args:
        folder: Its folder, with ``config.json`` and ``adapter_model.safetensors`` or ``mm_projector.safetensors``.
        alpha: LoRA's alpha, where the config does not say it.

    Raises:
        CheckpointError: It is a pickle, holds tensors that are none of a donor's, or is of no or several modalities.
    """
    files = _files(folder)
    config = read_json_object(folder / "config.json")
    groups: dict[str, Factors] = {}
    projectors: dict[str, dict[str, TensorEntry]] = {}
    vectors: dict[str, dict[str, TensorEntry]] = {}
    for entry in (entry for path in files for entry in read_header(path).entries):
        _sort_in(entry, folder, groups=groups, projectors=projectors, vectors=vectors)
    modality = _modality([*projectors, *groups, *vectors], folder)
    text, group = groups.get(TEXT, {}), groups.get(modality, {})
    for factors in (text, group):
        _check_pairs(factors, folder)
    scale = 1.0
    if text or group:
        rank = _rank([*text.values(), *group.values()], folder)
        scale = (alpha if alpha is not None else _alpha(config, modality, folder)) / rank
    kept = {side: entry for side, entry in vectors.get(modality, {}).items() if all(entry.shape)}
    own = projectors.get(modality, {})
    return ReleasedDonor(folder, config, RELEASED_NAMES[modality], scale, text, group, own, kept)


def _files(folder: Path) -> list[Path]:
    """Returns the donor's files of tensors.

    Raises:
        CheckpointError: There is none, or one is there as a pickle alone.
    """
    found = [folder / f"{name}.safetensors" for name in FILES]
    for name, path in zip(FILES, found, strict=True):
        if not path.is_file() and (folder / f"{name}.bin").is_file():
            raise CheckpointError(
                f"'{folder}' holds a pickle ({name}.bin), which can run code and is never opened.",
                hint=CONVERT.format(name=name),
            )
    found = [path for path in found if path.is_file()]
    if not found:
        raise CheckpointError(f"'{folder}' holds no {FILES[0]}.safetensors.")
    return found


def _sort_in(
    entry: TensorEntry,
    folder: Path,
    *,
    groups: dict[str, Factors],
    projectors: dict[str, dict[str, TensorEntry]],
    vectors: dict[str, dict[str, TensorEntry]],
) -> None:
    if _MERGED.search(entry.key):
        raise CheckpointError(
            f"'{folder}' is a composition already: '{entry.key}'.", hint="Import its donors, and compose them here."
        )
    if found := _FACTOR.search(entry.key):
        linear, letter, group = found.groups()
        groups.setdefault(group, {}).setdefault(linear, {})[letter] = entry
    elif found := _PROJECTOR.search(entry.key):
        projectors.setdefault(found.group(1), {})[found.group(2)] = entry
    elif found := _LLAVA_PROJECTOR.search(entry.key):
        projectors.setdefault("vision", {})[found.group(1)] = entry
    elif found := _VECTORS.search(entry.key):
        vectors.setdefault(found.group(2), {})[found.group(1)] = entry
    else:
        raise CheckpointError(f"'{entry.key}' in '{folder}' is none of a donor's tensors.")


def _modality(names: Iterable[str], folder: Path) -> str:
    found = list(dict.fromkeys(name for name in names if name != TEXT))
    if len(found) != 1 or found[0] not in RELEASED_NAMES:
        listed = ", ".join(f"'{name}'" for name in found) or "none"
        raise CheckpointError(
            f"The donor in '{folder}' is of {listed}, and a donor is of one modality.",
            hint=f"Known names: {', '.join(RELEASED_NAMES)}.",
        )
    return found[0]


def _check_pairs(factors: Factors, folder: Path) -> None:
    for linear, pair in factors.items():
        if pair.keys() != {"A", "B"} or pair["A"].shape[:1] != pair["B"].shape[1:]:
            raise CheckpointError(f"The factors of '{linear}' in '{folder}' are no pair.")


def _rank(pairs: list[dict[str, TensorEntry]], folder: Path) -> int:
    ranks = {pair["A"].shape[0] for pair in pairs}
    if len(ranks) != 1:
        raise CheckpointError(f"The factors in '{folder}' are of {len(ranks)} ranks, and must be of one.")
    return ranks.pop()


def _alpha(config: Mapping[str, Any], modality: str, folder: Path) -> float:
    for key in ("lora_alpha", f"{modality}_lora_alpha", "default_lora_alpha"):
        if isinstance(config.get(key), int | float):
            return float(config[key])
    raise CheckpointError(
        f"The config of '{folder}' does not say LoRA's alpha.", hint="Give it: the published scripts use 256."
    )
