"""The lab's donors with decoupled parameters, trained beside the shared ones and saved as composed checkpoints.

Each begins where the shared donor of the same modality began: the same encoder, the same fresh projector, the base's
language model; and takes the same steps on the same questions. Only stage 2 differs: ``lab/decoupled.py``.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from transformers import LlamaForCausalLM

from mcompose.errors import OutputError
from mcompose.lab import (
    LabFamily,
    NumbersSettings,
    SmolSettings,
    adopt_language_model,
    build_donor,
    deterministic_torch,
    generator_for,
    load_digits,
    remove_group,
    save_points_source,
    save_source,
    single_accuracy,
    text_config,
    train_donor,
    train_smol_decoupled,
)
from mcompose.modeling import ComposedForConditionalGeneration, add_groups, register, routed_linears
from mcompose.on_disk import CARD, FOLDER
from mcompose.pipeline.write import MergeOptions, merge
from mcompose.whole_files import write_text

if TYPE_CHECKING:
    from mcompose.lab import Donor

__all__ = ["DecoupledDonors", "decoupled_donors"]

_MARKER = "decoupled.json"
_VERSION = 1


@dataclass(frozen=True)
class DecoupledDonors:
    """Donors of DAMC.

    Args:
        folders: Modality -> composed checkpoint with a group of the modality.
        figures: Modality -> single task -> share answered right, and ``seconds`` of processor time that training took.
    """

    folders: dict[str, Path]
    figures: dict[str, dict[str, float]]


def decoupled_donors(
    family: LabFamily, settings: NumbersSettings | SmolSettings, *, progress: Callable[[str], None] | None = None
) -> DecoupledDonors:
    """Trains the decoupled donors of a family, or opens those that are there.

    Args:
        family: A finished family.
        settings: What it was made with.
        progress: Told which donor is being trained.

    Returns:
        The donors; they lie in the family's folder ``decoupled``.

    Raises:
        OutputError: The family was made with other settings.
    """
    seed = int(family.figures["seed"])
    if family.figures["digest"] != settings.digest(seed):
        raise OutputError(f"{family.folder} was made with other settings.", hint="Make the family anew.")
    folders, figures = {}, {}
    for modality in family.donors:
        folders[modality] = family.folder / "decoupled" / modality
        marker = folders[modality] / _MARKER
        if not marker.is_file() or _read(marker)["version"] != _VERSION:
            if progress:
                progress(modality)
            _make(family, settings, modality, folder=folders[modality])
        figures[modality] = _read(marker)["figures"]
    return DecoupledDonors(folders, figures)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _make(family: LabFamily, settings: NumbersSettings | SmolSettings, modality: str, *, folder: Path) -> None:
    work = folder.with_name(f"{modality}.partial")
    for old in (folder, work):
        shutil.rmtree(old, ignore_errors=True)
    if isinstance(settings, SmolSettings):
        donor, figures = train_smol_decoupled(family, settings, modality)
    else:
        donor, figures = _train_numbers(family, settings, modality)
    group = remove_group(donor)
    if modality == "points":
        save_points_source(work / modality, donor.model, donor.processor)
    else:
        save_source(work / modality, donor.model, donor.processor, processor_code=donor.code)
    _save_with_group(work, modality, group, family=family)
    marker = {"version": _VERSION, "figures": figures}
    (work / "composed" / _MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
    (work / "composed").rename(folder)
    shutil.rmtree(work)


def _train_numbers(family: LabFamily, settings: NumbersSettings, modality: str) -> tuple[Donor, dict[str, float]]:
    seed = int(family.figures["seed"])
    with deterministic_torch(seed, "donor", modality):
        donor = build_donor(modality, text_config(settings))
        _take_encoder(donor, family.donors[modality])
        adopt_language_model(donor, LlamaForCausalLM.from_pretrained(family.base))
        digits = load_digits(generator=generator_for(seed, "digits"))
        started = time.process_time()
        train_donor(donor, settings, seed=seed, digits=digits, decouple=True)
        figures = {"seconds": round(time.process_time() - started, 3)}
        return donor, figures | single_accuracy(donor, seed=seed, digits=digits, count=settings.checked)


def _take_encoder(donor: Donor, shared: Path) -> None:
    """Encoders are frozen in both stages, so the shared donor's is the one that it began with."""
    trained: Any = type(donor.model).from_pretrained(shared)
    own: Any = donor.model
    getattr(own.model, donor.tower).load_state_dict(getattr(trained.model, donor.tower).state_dict())


def _save_with_group(work: Path, modality: str, group: dict[str, torch.Tensor], *, family: LabFamily) -> None:
    """Composes the text side alone, and gives the result the group."""
    recipe = {
        "schema": 1,
        "name": f"{family.name}-{modality}-decoupled",
        "base": f"local:{family.base.resolve()}",
        "sources": [{"name": modality, "model": f"local:{modality}", "modalities": [modality]}],
        "merge": {"method": "naivemc", "dtype": "float32"},
        "output": {"dir": "composed", "format": "composed"},
    }
    path = work / "recipe.yaml"
    write_text(path, yaml.safe_dump(recipe, sort_keys=False))
    plain = merge(path, options=MergeOptions(quiet=True)).result.folder
    register()
    model: Any = ComposedForConditionalGeneration.from_pretrained(plain)
    add_groups(model, [modality])
    with torch.no_grad():
        for name, linear in routed_linears(model.model.language_model):
            for kind, values in linear.groups[modality].named_parameters():
                values.copy_(group[f"{name}.{kind}"])
    shutil.rmtree(plain / FOLDER)  # they tell of weights without a group
    (plain / CARD).unlink(missing_ok=True)
    model.save_pretrained(plain)
