"""Composed models over tiny natives, in memory, and inputs renamed for them."""

import torch
from composed_folders import composed_state, config_for
from tiny_configs import TOKENS
from tiny_models import tiny_inputs, tiny_model

from mcompose.modeling import ComposedForConditionalGeneration

SHARED = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}


def served(inputs):
    """The modalities whose placeholders occur in tiny inputs."""
    return [modality for modality, index in TOKENS.items() if (inputs["input_ids"] == index).any()]


def renamed(inputs, source):
    """Native inputs under the names that a composed model takes."""
    return {key if key in SHARED else f"{source}__{key}": value for key, value in inputs.items()}


def compose(language, sources, modalities, placeholders, **extra):
    """A composed model in eval mode with copies of the natives' weights."""
    config = config_for(language, sources, modalities, placeholders, **extra)
    model = ComposedForConditionalGeneration(config).eval()
    model.load_state_dict(composed_state(language, sources))
    return model


def one_source(model_type, seed=0):
    """A native model, the composition of it alone, and inputs for both."""
    native = tiny_model(model_type, seed)
    inputs = tiny_inputs(model_type, native)
    modalities = served(inputs)
    composed = compose(native, {"only": native}, {"only": modalities}, {m: TOKENS[m] for m in modalities})
    return native, composed, inputs, renamed(inputs, "only")


def placeholder_rows(length, *rows, pad=0, side="left"):
    """Rows of ids padded to one length, and their mask."""
    ids, mask = [], []
    for row in rows:
        fill = [pad] * (length - len(row))
        ids.append(fill + row if side == "left" else row + fill)
        real, none = [1] * len(row), [0] * len(fill)
        mask.append(none + real if side == "left" else real + none)
    return torch.tensor(ids), torch.tensor(mask)
