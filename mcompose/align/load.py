"""Loads what a stage begins from, with the parameters that it trains at full precision.

Frozen tensors are held in the stage's precision; what is trained is read from the files again, so that a float32 master
of a float32 checkpoint has all its bits even when the rest of the model is held in bfloat16.
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


def stage_precision(asked: str | None, dtypes: Iterable[str]) -> str:
    """Returns the precision of a stage: what was asked for, else what suits the checkpoint.

    Args:
        asked: The recipe's setting.
        dtypes: safetensors dtypes of the checkpoint's tensors.
    """
    return asked or ("float32" if "F32" in set(dtypes) else "mixed")


def load_processor(folder: Path) -> Any:
    """Returns the processor of a checkpoint; its tokenizer where it has none.

    Raises:
        CheckpointError: transformers cannot load it.
    """
    register()
    try:
        if not any((folder / name).is_file() for name in _PROCESSOR_FILES):
            return AutoTokenizer.from_pretrained(folder)
        table = folder / "processor_config.json"
        own = json.loads(table.read_text(encoding="utf-8")) if table.is_file() else {}
        if own.get("processor_class") == "FramesProcessor":
            return FramesProcessor.from_pretrained(folder)
        return AutoProcessor.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise _not_loaded(folder, error) from error


def load_model(lineage: Lineage, *, precision: str) -> Any:
    """Returns the network of a lineage, every tensor with its newest value.

    Args:
        lineage: Checkpoint and stages that the stage starts from.
        precision: Precision of the stage; decides how tensors are held.

    Returns:
        A model with a head, in evaluation mode, nothing of it set to be trained.

    Raises:
        CheckpointError: transformers cannot load it.
    """
    register()
    logging.disable_progress_bar()
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    folder = lineage.root.folder
    try:
        config = AutoConfig.from_pretrained(folder)
        for name, value in lineage.config.items():
            if lineage.root.config.get(name) != value:
                setattr(config, name, value)
        model = _model_class(config).from_pretrained(folder, config=config, dtype=dtype)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _not_loaded(folder, error) from error
    model.eval().requires_grad_(requires_grad=False)
    set_values(model, lineage, memory_names(model, lineage.anatomy, keys=lineage.changed), dtype=dtype)
    return model


def _model_class(config: Any) -> Any:
    named = getattr(transformers, (config.architectures or [""])[0], None)
    if named is not None:
        return named
    return (
        AutoModelForMultimodalLM
        if config.model_type in {*MULTIMODAL_MODELS, COMPOSED_TYPE, POINTS_TYPE}
        else AutoModelForCausalLM
    )


def _not_loaded(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"'{folder}' cannot be loaded: {first_line(error)}.")


def memory_names(model: Any, anatomy: Anatomy, *, keys: Iterable[str], strict: bool = True) -> dict[str, str]:
    """Returns where tensors of the files are in memory.

    Args:
        model: The loaded model.
        anatomy: Anatomy of its files.
        keys: Tensors, as the files spell them.
        strict: Whether all have to be found.

    Returns:
        Key to the name of the parameter or buffer.

    Raises:
        CheckpointError: One is not found; transformers joins or splits it while loading.
    """
    known = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    modules = {id(module): name for name, module in model.named_modules()}
    decoder = modules.get(id(model.get_decoder()), "")
    head = modules.get(id(model.get_output_embeddings()), "lm_head")
    base = model.base_model_prefix
    found = {}
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
                f"'{key}' has no parameter of its own in memory.", hint="This tensor cannot be trained by itself."
            )
        if name is not None:
            found[key] = name
    return found


@torch.no_grad()
def set_values(model: Any, lineage: Lineage, names: Mapping[str, str], *, dtype: torch.dtype) -> None:
    """Gives parameters the values of the files, in a dtype.

    Args:
        model: The loaded model.
        lineage: Where the values are.
        names: Key to name in memory.
        dtype: Dtype of the parameters from now on.
    """
    parameters = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for key, name in names.items():
        value = as_torch(lineage.read(key), lineage.dtypes[key])
        parameter = parameters[name]
        if value.shape != parameter.shape:
            raise CheckpointError(f"'{key}' has shape {tuple(value.shape)}, the model's {tuple(parameter.shape)}.")
        parameter.data = value.to(dtype=dtype if value.is_floating_point() else value.dtype, device=parameter.device)
