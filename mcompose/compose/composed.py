"""The composed format: one config over one language model and several towers, and one processor for all media."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcompose.compose.chat_template import chat_template_of, string_template
from mcompose.compose.foreign_errors import naming_source
from mcompose.compose.proven import check_proven
from mcompose.compose.towers import OutputTower
from mcompose.errors import CompositionError
from mcompose.modeling import family_of, generate_files, text_family_of
from mcompose.on_disk import COMPOSED_TYPE

if TYPE_CHECKING:
    from mcompose.checkpoint import StagedOutput
    from mcompose.compose.blueprint import Blueprint
    from mcompose.merge import SourceParts

__all__ = ["check_composed", "tower_entries", "write_composed"]

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
PROCESSOR_PARTS_IN_FILE = ("image_processor", "video_processor", "feature_extractor")


def write_composed(staged: StagedOutput, blueprint: Blueprint, *, dtype: str | None) -> list[str]:
    """Writes config, processor, tokenizer and the network's own code.

    The tokenizer is the owner's with one placeholder token per modality added. The chat template is that of the base
    language model; without a base it is the plain one of ``modeling/processing/chat.py``. A multimodal source's is kept
    where that source is the only one (as the general model of domain experts is) and it writes strings as they are.
    The language config is the owner's too, unless a source brings a class that only adds to it (multimodal rotary
    positions), whose tensors are the same.

    Args:
        staged: The output.
        blueprint: Decisions about the output.
        dtype: The recipe's dtype; None keeps that of the weights.

    Returns:
        Warnings for the user.

    Raises:
        CompositionError: A source has no processor, or the sources do not fit one network.
    """
    noticed = _write_network(staged.partial, blueprint, dtype=dtype)
    _write_generation_config(staged, blueprint.owner)
    for name, text in generate_files("composed").items():
        staged.write_file(name, text)
    for addition in blueprint.additions:
        addition.write_files(staged)
    return noticed


def check_composed(blueprint: Blueprint) -> None:
    """Refuses, without torch, what writing a composed output would refuse for its families or missing files.

    Args:
        blueprint: Decisions about the output.

    Raises:
        CompositionError: A family was not proven, or a source has no processor.
    """
    check_proven(blueprint, text_type=_language_config(blueprint)["model_type"])
    for tower in blueprint.towers:
        if tower.built is None:
            _check_processor_files(tower)


def _check_processor_files(tower: OutputTower) -> None:
    folder = tower.processor_folder or tower.owner.checkpoint.folder
    found = [folder / name for name in PROCESSOR_FILES if (folder / name).is_file()]
    if not found:
        raise CompositionError(
            f"The processor of source '{tower.source_name}' cannot be loaded: its folder holds neither "
            f"{' nor '.join(PROCESSOR_FILES[:2])}.",
            hint="Add the files of its processor, as `save_pretrained` writes them, or give it `modalities: []`.",
        )
    for path in found:
        with naming_source(tower.source_name, "processor"):
            table = json.loads(path.read_bytes())
            for part in PROCESSOR_PARTS_IN_FILE:
                if not isinstance(table.get(part, {}), dict):
                    raise TypeError(f"'{part}' in {path.name} is not a table")


def tower_entries(blueprint: Blueprint) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Returns what a composed config is made of: the language model's config, and each tower's entry.

    Args:
        blueprint: Decisions about the output.

    Raises:
        CompositionError: transformers cannot build a source's config.
    """
    return _language_config(blueprint), {tower.name: _stored_source(tower) for tower in blueprint.towers}


def _write_network(folder: Path, blueprint: Blueprint, *, dtype: str | None) -> list[str]:
    """Writes config and processors, and returns warnings."""
    # These cost seconds to import, and only this format needs them.
    from mcompose.modeling import add_placeholders, composed_config, register, write_processor  # noqa: PLC0415

    register()
    language, stored = tower_entries(blueprint)
    check_proven(blueprint, text_type=language["model_type"])
    tokenizer, noticed = _shared_tokenizer(blueprint)
    for tower in blueprint.towers:
        if family_of(tower.model_type).structure:
            stored[tower.name] = _stored_source(tower, tokenizer=tokenizer)
    placeholders = add_placeholders(tokenizer, list(blueprint.sources.modalities))
    fields: dict[str, Any] = {}
    for addition in blueprint.additions:
        fields |= addition.config_fields(tokenizer)
    try:
        config = composed_config(
            language,
            stored,
            placeholders=placeholders,
            tie_word_embeddings=not any(job.name == "lm_head.weight" for job in blueprint.plan.jobs),
            dtype=dtype or blueprint.dtype,
            **fields,
        )
        _check_network(config, blueprint)
    except ValueError as error:
        raise CompositionError(str(error)) from error
    config.save_pretrained(folder)
    folders = {tower.name: tower.processor_folder for tower in blueprint.towers if tower.processor_folder}
    made_with: dict[str, Any] = {}
    for addition in blueprint.additions:
        folders |= addition.processor_folders()
        made_with |= addition.processor_fields()
    write_processor(folder, tokenizer, stored, folders=folders, **made_with)
    for addition in blueprint.additions:
        addition.write_processors(folder)
    _check_processors(folder, blueprint)
    return noticed


def _write_generation_config(staged: StagedOutput, owner: SourceParts) -> None:
    from transformers import GenerationConfig  # noqa: PLC0415 - as above

    if (owner.checkpoint.folder / "generation_config.json").is_file():
        with naming_source(owner.name, "generation config"):
            generation = GenerationConfig.from_pretrained(owner.checkpoint.folder)
        generation.save_pretrained(staged.partial)


def _tokenizer(source: SourceParts) -> Any:
    from transformers import AutoTokenizer  # noqa: PLC0415 - as above

    with naming_source(source.name, "tokenizer"):
        return AutoTokenizer.from_pretrained(source.checkpoint.folder, trust_remote_code=False)


def _shared_tokenizer(blueprint: Blueprint) -> tuple[Any, list[str]]:
    """Returns the owner's, with the chat template that the composition is to have, and warnings."""
    owner = blueprint.owner
    tokenizer = _tokenizer(owner)
    if not owner.anatomy.modalities or owner.anatomy.model_type == COMPOSED_TYPE:
        return tokenizer, []
    if len(blueprint.sources.everything) > 1:
        tokenizer.chat_template = None  # written for one source's own placeholders, perhaps for message lists
        return tokenizer, []
    own = chat_template_of(tokenizer, owner.checkpoint.folder)
    tokenizer.chat_template = None if own is None else string_template(tokenizer, own)
    if own is None or tokenizer.chat_template:
        return tokenizer, []
    return tokenizer, [
        f"The chat template of {owner.name} does not write plain strings as they are; the composition has the plain "
        "one of mcompose (USER: ... ASSISTANT: ...), which that model was not tuned for."
    ]


def _stored_source(tower: OutputTower, *, tokenizer: Any = None) -> dict[str, Any]:
    """One tower's entry in the config; with a tokenizer, tokens that its family fills get ids of the composition."""
    from mcompose.modeling import (  # noqa: PLC0415 - torch and transformers, when needed
        native_config,
        stored_source,
        structure_ids,
    )

    ids = None
    if tokenizer is not None:
        ids = structure_ids(tokenizer, tower.config, source_tokenizer=_tokenizer(tower.owner))
    with naming_source(tower.source_name, "config"):
        entry = stored_source(tower.config, modalities=tower.modalities, structure_ids=ids)
        native_config(entry["model_type"], entry["config"])  # for its complaints
        return entry


def _check_network(config: Any, blueprint: Blueprint) -> None:
    """Builds the network without memory: it must hold what the plan writes, tensor by tensor.

    Raises:
        ValueError: Its layers cannot be routed.
        CompositionError: It holds other tensors.
    """
    checked = {prefix: addition for addition in blueprint.additions for prefix in addition.checked}
    if not checked:
        return
    import torch  # noqa: PLC0415 - as above

    from mcompose.modeling import ComposedForConditionalGeneration  # noqa: PLC0415

    with torch.device("meta"):
        held = {name: tuple(t.shape) for name, t in ComposedForConditionalGeneration(config).state_dict().items()}
    if config.tie_word_embeddings:
        held.pop("lm_head.weight", None)
    outside = tuple(prefix for addition in blueprint.additions for prefix in addition.outside)
    made = {job.name: job.shape for job in blueprint.plan.jobs}
    for name in dict.fromkeys([*made, *held]):
        addition = next((addition for prefix, addition in checked.items() if name.startswith(prefix)), None)
        if addition is not None and not name.startswith(outside) and made.get(name) != held.get(name):
            raise addition.misfit(name, made.get(name, "not"), held.get(name, "not"))


def _check_processors(folder: Path, blueprint: Blueprint) -> None:
    """Loads what was written: a source without a processor is told now, not when the model is used."""
    from mcompose.modeling import load_source_processor  # noqa: PLC0415

    for tower in blueprint.towers:
        with naming_source(tower.source_name, "processor"):
            load_source_processor(folder, tower.name, model_type=tower.model_type)
    for addition in blueprint.additions:
        addition.check_processors(folder)


def _language_config(blueprint: Blueprint) -> dict[str, Any]:
    """Returns the owner's, or that of the first source whose class adds multimodal positions to the same tensors."""
    towers = [blueprint.sources.get(name) for name in blueprint.sources.towers]
    lead = next((s for s in towers if text_family_of(s.anatomy.text_config["model_type"]).mrope), blueprint.owner)
    tied = not any(job.name == "lm_head.weight" for job in blueprint.plan.jobs)
    config = {**lead.anatomy.text_config, "vocab_size": blueprint.vocabulary.rows, "tie_word_embeddings": tied}
    config.update(blueprint.moved.fields)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if key in blueprint.owner.anatomy.text_config:
            config[key] = blueprint.owner.anatomy.text_config[key]
    for key in ("architectures", "auto_map", "_name_or_path", "transformers_version", "quantization_config"):
        config.pop(key, None)
    return config
