"""Writes a released donor of Model Composition as a composed checkpoint, which recipes can name as a source.

The language model is the base's, bit for bit; the donor's factors are its text group and its modality's group; its
projector stands behind an encoder that is taken from a checkpoint of its own, since the donors do not hold one. Donors
that see images are LLaVA's network, which transformers has. The released donors of other modalities are built on
encoders that transformers has no class for (BEATs with a Q-Former, LanguageBind's video encoder, PointBERT), and are
refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcompose.anatomy import ENCODER, GROUP, LANGUAGE, PROJECTOR
from mcompose.checkpoint import Checkpoint, StagedOutput, TensorEntry, open_checkpoint
from mcompose.compose.provenance import library_versions, lock_text
from mcompose.compose.released import Factors, ReleasedDonor, read_released
from mcompose.compose.sources import open_parts
from mcompose.dtypes import FLOAT_NAMES
from mcompose.errors import CompositionError
from mcompose.ledger import Ledger, SourceRow, StepRow
from mcompose.merge import MergePlan, Segment, TensorJob, build_plan, copy_job, execute
from mcompose.on_disk import LEDGER, LOCK
from mcompose.part_names import LANGUAGE_PARTS

if TYPE_CHECKING:
    from mcompose.merge import SourceParts
    from mcompose.refs import ModelRef

__all__ = ["ImportRequest", "import_released"]

TOWER = "donor"
PROJECTOR_KEYS = {"0": "linear_1", "2": "linear_2"}
SHARD = 5 * 1000**3


@dataclass(frozen=True)
class ImportRequest:
    """What to import.

    Args:
        donor: Folder of the released donor, converted to safetensors.
        base: The language model that it was trained on.
        encoder: Checkpoint of its encoder (``hub:openai/clip-vit-large-patch14-336``).
        output: Where the checkpoint goes.
        alpha: LoRA's alpha, where the donor's config does not say it.
        relative_to: Folder that relative references start from.
    """

    donor: Path
    base: ModelRef
    encoder: ModelRef
    output: Path
    alpha: float | None = None
    relative_to: Path = Path()


def import_released(request: ImportRequest) -> Path:
    """Imports a released donor.

    Args:
        request: What, and where to.

    Returns:
        The folder that was written: a composed checkpoint of one source, with decoupled groups.

    Raises:
        CheckpointError: A file cannot be read, or is not a donor's.
        CompositionError: Donor, base and encoder do not fit together.
        OutputError: The folder holds something else.
    """
    donor = read_released(request.donor, alpha=request.alpha)
    if donor.modality != "image":
        raise CompositionError(
            f"The donor in '{request.donor}' is of {donor.modality}, and transformers has no class for its encoder.",
            hint="Train a donor of this modality by `mcompose align`, from a checkpoint that transformers knows.",
        )
    odd = [key for key in donor.projector if key.partition(".")[0] not in PROJECTOR_KEYS]
    if odd:
        raise CompositionError(
            f"The projector in '{request.donor}' holds '{odd[0]}', and LLaVA's has two linear layers, at 0 and 2."
        )
    base = open_parts(request.base, name="base", relative_to=request.relative_to, weights=True)
    encoder = open_checkpoint(request.encoder, relative_to=request.relative_to)
    network = _llava_config(donor, base, encoder)
    jobs = [*_language_jobs(base), *_tower_jobs(network, encoder, donor), *_group_jobs(donor, base)]
    plan = build_plan(jobs, max_shard_size=SHARD, metadata={"format": "pt"})
    with StagedOutput.open(request.output, fingerprint=plan.fingerprint) as staged:
        _write_files(staged, donor, base, encoder, network)
        staged.allocate(plan.layout)
        done = execute(plan, staged)
        _write_records(staged, plan, Ledger(
            request.donor.name, "import", "Imported donor", "arXiv:2402.12750", "composed", (donor.modality,),
            versions=library_versions(),
            sources=(SourceRow("base", _shown(request.base)), SourceRow("encoder", _shown(request.encoder)),
                     SourceRow(TOWER, f"local:{request.donor.name}", "", (donor.modality,))),
            tensors=tuple(done.rows), steps=(StepRow("import", f"import of {request.donor.name}"),),
        ))  # fmt: skip
        return staged.finish()


def _shown(ref: ModelRef) -> str:
    return str(ref) if ref.kind == "hub" else f"local:{Path(ref.location).name}"


def _llava_config(donor: ReleasedDonor, base: SourceParts, encoder: Checkpoint) -> dict[str, Any]:
    """Returns the config of the network that the donor was: the encoder, two linear layers, the base."""
    from transformers import LlavaConfig  # noqa: PLC0415 - seconds, for an import only

    vision = dict(encoder.config.get("vision_config") or encoder.config)
    kind = str(vision.get("model_type") or encoder.config.get("model_type"))
    vision["model_type"] = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}.get(kind, kind)
    wanted = str(donor.config.get("mm_vision_select_feature", "patch"))
    settings = {
        "text_config": dict(base.anatomy.text_config), "vision_config": vision, "image_token_index": 0,
        "vision_feature_layer": int(donor.config.get("mm_vision_select_layer", -2)),
        "vision_feature_select_strategy": "full" if wanted == "cls_patch" else "default",
        "multimodal_projector_bias": "0.bias" in donor.projector, "projector_hidden_act": "gelu",
    }  # fmt: skip
    return LlavaConfig.from_dict(settings).to_dict()


def _language_jobs(base: SourceParts) -> list[TensorJob]:
    """Returns the base, as it is."""
    jobs = []
    for slot in base.anatomy.slots.values():
        if slot.part in LANGUAGE_PARTS:
            key = slot.name if slot.name.startswith("lm_head") else f"model.language_model.{slot.name}"
            jobs.append(copy_job(key, base.entry(slot.key), slot.part, source="base", layer=slot.layer))
    return jobs


def _tower_jobs(network: Mapping[str, Any], encoder: Checkpoint, donor: ReleasedDonor) -> list[TensorJob]:
    """Encoder and projector under the names that the network's class gives them."""
    import torch  # noqa: PLC0415 - as above

    from mcompose.modeling import (  # noqa: PLC0415 - torch and transformers, when needed
        build_tower,
        native_config,
    )

    with torch.device("meta"):
        tower = build_tower(native_config("llava", network), attn_implementation=None)
    held = {_core(key): entry for key, entry in encoder.tensors.items()}
    jobs = []
    for name, tensor in tower.state_dict().items():
        part, _, rest = name.partition(".")
        source, entry = ("encoder", held.get(_core(rest)))
        if part == "multi_modal_projector":
            source, entry = TOWER, _projected(donor, rest)
        if entry is None or entry.shape != tuple(tensor.shape):
            raise CompositionError(
                f"The {source} does not hold '{rest}' in the shape {list(tensor.shape)}"
                f"{'' if entry is None else f', but in {list(entry.shape)}'}.",
                hint="Is it the encoder that the donor was trained with?",
            )
        role = PROJECTOR if source == TOWER else ENCODER
        job = copy_job(f"model.towers.{TOWER}.{name}", entry, role, source=TOWER)
        jobs.append(job if source == TOWER else _from(job, "encoder"))
    vectors = ((side, entry) for side, entry in donor.vectors.items())
    jobs += [_vectors(side, entry, donor.modality) for side, entry in vectors]
    return jobs


def _from(job: TensorJob, source: str) -> TensorJob:
    """Returns the same job, its input called after where it comes from."""
    segment = job.segments[0]
    contribution = replace(segment.contributions[0], source=source)
    return replace(job, segments=(replace(segment, contributions=(contribution,)),))


def _vectors(side: str, entry: TensorEntry, modality: str) -> TensorJob:
    flat = replace(entry, shape=entry.shape[-2:])  # a batch dimension of one may stand in front
    return copy_job(f"model.{side}_tokens.{modality}", flat, PROJECTOR, source=TOWER)


def _core(name: str) -> str:
    """Returns a name of the encoder without the words that wrap it."""
    return ".".join(word for word in name.split(".") if word not in {"vision_model", "vision_tower", "model"})


def _projected(donor: ReleasedDonor, name: str) -> TensorEntry | None:
    layers = {own: released for released, own in PROJECTOR_KEYS.items()}
    layer, _, kind = name.partition(".")
    return donor.projector.get(f"{layers.get(layer)}.{kind}")


def _group_jobs(donor: ReleasedDonor, base: SourceParts) -> list[TensorJob]:
    """Returns the factors of both groups on every linear of every layer; zeros where there are none."""
    jobs = []
    for slot in base.anatomy.by_name(LANGUAGE).values():
        shape = base.entry(slot.key).shape
        if slot.layer is None or len(shape) != 2:
            continue
        linear = slot.name.removesuffix(".weight")
        for group, factors in _groups(donor).items():
            jobs += _factor_jobs(linear, group, factors, shape=shape, layer=slot.layer)
    known = {slot.removesuffix(".weight") for slot in base.anatomy.by_name(LANGUAGE)}
    odd = [linear for factors in _groups(donor).values() for linear in factors if linear not in known]
    if odd:
        raise CompositionError(
            f"The donor adapts '{odd[0]}', which the base does not have.", hint="Is it the base that it was trained on?"
        )
    return jobs


def _groups(donor: ReleasedDonor) -> dict[str, Factors]:
    found = {"text": donor.text, donor.modality: donor.group}
    return {name: factors for name, factors in found.items() if factors}


def _factor_jobs(linear: str, group: str, factors: Factors, *, shape: tuple[int, ...], layer: int) -> list[TensorJob]:
    first = next(iter(factors.values()))["A"]
    rank = first.shape[0]
    jobs = []
    for letter, wanted in (("A", (rank, shape[1])), ("B", (shape[0], rank))):
        key, part = f"model.language_model.{linear}.groups.{group}.lora_{letter}.weight", f"{GROUP}:{group}"
        entry = factors.get(linear, {}).get(letter)
        if entry is None:
            jobs.append(TensorJob(key, part, layer, first.dtype, wanted, (Segment(0, wanted[0], "created"),)))
            continue
        if entry.shape != wanted:
            raise CompositionError(
                f"'{entry.key}' has the shape {list(entry.shape)}; the base needs {list(wanted)}.",
                hint="Is it the base that the donor was trained on?",
            )
        jobs.append(copy_job(key, entry, part, source=TOWER, layer=layer))
    return jobs


def _write_files(
    staged: StagedOutput, donor: ReleasedDonor, base: SourceParts, encoder: Checkpoint, network: Mapping[str, Any]
) -> None:
    """Config, processor, tokenizer and the network's code."""
    from transformers import AutoTokenizer, LlavaImageProcessor, LlavaProcessor  # noqa: PLC0415 - as above

    from mcompose.modeling import (  # noqa: PLC0415
        add_placeholders,
        build_processor,
        composed_config,
        generate_files,
        prefix_fields,
        register,
        stored_source,
    )

    register()
    own = AutoTokenizer.from_pretrained(base.checkpoint.folder, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(base.checkpoint.folder, trust_remote_code=False)
    own.add_tokens(["<image>"], special_tokens=True)
    counts = {f"{side}_tokens": {donor.modality: entry.shape[-2]} for side, entry in donor.vectors.items()}
    groups = {
        name: {"kind": "low_rank", "rank": next(iter(factors.values()))["A"].shape[0], "scale": donor.scale}
        for name, factors in _groups(donor).items()
    }
    entry = stored_source(network, modalities=[donor.modality])
    config = composed_config(
        dict(base.anatomy.text_config),
        {TOWER: entry},
        placeholders=add_placeholders(tokenizer, [donor.modality]),
        tie_word_embeddings=base.anatomy.tied,
        routed_groups=groups or None,
        **prefix_fields(tokenizer, **counts),
        dtype=FLOAT_NAMES.get(base.entry(base.embedding.key).dtype) if base.embedding else None,
    )
    config.save_pretrained(staged.partial)
    settings = _image_settings(encoder, donor)
    vision = network["vision_config"]
    native = LlavaProcessor(
        LlavaImageProcessor(**settings),
        own,
        patch_size=vision["patch_size"],
        vision_feature_select_strategy=network["vision_feature_select_strategy"],
        num_additional_image_tokens=1,
    )
    made = build_processor(
        tokenizer,
        {TOWER: entry},
        processors={TOWER: native},
        prefix_tokens=counts.get("prefix_tokens"),
        suffix_tokens=counts.get("suffix_tokens"),
    )
    made.unfinished = True
    made.save_pretrained(staged.partial)
    for name, text in generate_files("composed").items():
        staged.write_file(name, text)


def _image_settings(encoder: Checkpoint, donor: ReleasedDonor) -> dict[str, Any]:
    """Returns how images are prepared: the encoder's way, padded to a square where the donor was trained so."""
    path = encoder.folder / "preprocessor_config.json"
    table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kept = ("size", "crop_size", "image_mean", "image_std", "resample", "do_resize", "do_center_crop", "do_normalize",
            "do_rescale", "rescale_factor", "do_convert_rgb")  # fmt: skip
    found = {key: table[key] for key in kept if key in table}
    for key in ("size", "crop_size"):
        if isinstance(found.get(key), int):  # as old files write it
            side = found[key]
            found[key] = {"shortest_edge": side} if key == "size" else {"height": side, "width": side}
    return {**found, "do_pad": donor.config.get("image_aspect_ratio", "pad") == "pad"}


def _write_records(staged: StagedOutput, plan: MergePlan, ledger: Ledger) -> None:
    staged.write_file(LEDGER, ledger.to_json())
    sizes = {shard.filename: {"size": shard.size} for shard in plan.layout.shards}
    sources = {row.name: {"ref": row.ref} for row in ledger.sources}
    staged.write_file(LOCK, lock_text(staged.partial, sizes, sources))
