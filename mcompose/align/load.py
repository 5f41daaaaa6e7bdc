"""Loads the model that a stage starts from, with the trained parameters at full precision.

Frozen tensors are held in the stage's precision. Trained tensors are read from the files again, so that the master of a
float32 checkpoint keeps all its bits even if the rest of the model is held in bfloat16.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES as MULTIMODAL_MODELS
from transformers.utils import logging

from mcompose.align.tensor_file import as_torch
from mcompose.anatomy import EMBEDDING, HEAD, LANGUAGE
from mcompose.errors import CheckpointError, first_line
from mcompose.modeling import FramesProcessor, register
from mcompose.on_disk import COMPOSED_TYPE, POINTS_TYPE

if TYPE_CHECKING:
    from mcompose.align.results.lineage import Lineage
    from mcompose.anatomy import Anatomy

__all__ = ["load_model", "load_processor", "memory_names", "set_values", "stage_precision"]

_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def stage_precision(requested: str | None, dtypes: Iterable[str]) -> str:
    """Returns the precision of a stage: the requested one, else the one that suits the checkpoint.

    Args:
        requested: Precision in the recipe; None if it does not set one.
        dtypes: safetensors dtypes of the checkpoint's tensors.
    """
    return requested or ("float32" if "F32" in set(dtypes) else "mixed")


def load_processor(folder: Path) -> Any:
    """Loads the processor of a checkpoint, or its tokenizer if it does not have a processor.

    Raises:
        CheckpointError: transformers cannot load it.
    """
    register()
    try:
        if not any((folder / name).is_file() for name in _PROCESSOR_FILES):
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        table = folder / "processor_config.json"
        config = json.loads(table.read_text(encoding="utf-8")) if table.is_file() else {}
        if config.get("processor_class") == "FramesProcessor":
            return FramesProcessor.from_pretrained(folder)
        return AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _not_loaded(folder, error) from error


def load_model(lineage: Lineage, *, precision: str) -> Any:
    """Loads the network of a lineage, every tensor with its newest value.

    Args:
        lineage: Lineage that the stage starts from.
        precision: Precision of the stage, which decides the dtype of tensors.

    Returns:
        A model with a head, in evaluation mode, with nothing set to be trained.

    Raises:
        CheckpointError: transformers cannot load it.
    """
    register()
    logging.disable_progress_bar()
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    folder = lineage.root.folder
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        for name, value in lineage.config.items():
            if lineage.root.config.get(name) != value:
                setattr(config, name, value)
        model = _model_class(config).from_pretrained(folder, config=config, dtype=dtype, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _not_loaded(folder, error) from error
    model.eval().requires_grad_(requires_grad=False)
    set_values(model, lineage, memory_names(model, lineage.anatomy, keys=lineage.changed), dtype=dtype)
    return model


def _model_class(config: Any) -> Any:
    declared = getattr(transformers, (config.architectures or [""])[0], None)
    if declared is not None:
        return declared
    return (
        AutoModelForMultimodalLM
        if config.model_type in {*MULTIMODAL_MODELS, COMPOSED_TYPE, POINTS_TYPE}
        else AutoModelForCausalLM
    )


def _not_loaded(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"'{folder}' cannot be loaded: {first_line(error)}.")


def memory_names(model: Any, anatomy: Anatomy, *, keys: Iterable[str], strict: bool = True) -> dict[str, str]:
    """Maps tensors of the files to their names in memory.

    Args:
        model: Loaded model.
        anatomy: Anatomy of its files.
        keys: Names of tensors in the files.
        strict: Whether every tensor must have a name in memory.

    Returns:
        Key to the name of the parameter or buffer.

    Raises:
        CheckpointError: A tensor has no name in memory, because transformers joins or splits it while loading.
    """
    known = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    modules = {id(module): name for name, module in model.named_modules()}
    decoder = modules.get(id(model.get_decoder()), "")
    head = modules.get(id(model.get_output_embeddings()), "lm_head")
    base = model.base_model_prefix
    names = {}
    for key in keys:
        slot = anatomy.slots[key]
        path = slot.name
        if slot.part in (LANGUAGE, EMBEDDING):
            path = f"{decoder}.{slot.name}"
        elif slot.part == HEAD:
            path = head + slot.name.removeprefix("lm_head")
        name = next((name for name in (path, f"{base}.{path}", key) if name in known), None)
        if name is None and strict:
            raise CheckpointError(
                f"'{key}' cannot be trained by itself: transformers joins or splits it while loading.",
                hint="Train a part that does not contain it.",
            )
        if name is not None:
            names[key] = name
    return names


@torch.no_grad()
def set_values(model: Any, lineage: Lineage, names: Mapping[str, str], *, dtype: torch.dtype) -> None:
    """Sets parameters to the values of the files, in a dtype.

    Args:
        model: Loaded model; changed in place.
        lineage: Lineage to read the values from.
        names: Key in the files to name in memory.
        dtype: New dtype of floating-point parameters.
    """
    parameters = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for key, name in names.items():
        value = as_torch(lineage.read(key), lineage.dtypes[key])
        parameter = parameters[name]
        if value.shape != parameter.shape:
            raise CheckpointError(
                f"'{key}' has shape {tuple(value.shape)} in the files and {tuple(parameter.shape)} in the model."
            )
        parameter.data = value.to(dtype=dtype if value.is_floating_point() else value.dtype, device=parameter.device)
