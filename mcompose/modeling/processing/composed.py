# pyright: reportIncompatibleMethodOverride=false
"""The processor of a composed checkpoint: one tokenizer, and each source's own processor for its media.

Files that a writer produces beside ``config.json``:

- the composition's tokenizer, with the placeholders ``<image>``, ``<video>``, ``<audio>``, ``<points>`` of the
  modalities that are served as special tokens; their ids are the ``*_token_id`` of ``config.json``;
- ``processor_config.json``: ``processor_class``, ``auto_map`` and ``sources``: source name -> ``{"model_type",
  "modalities"}``, and ``prefix_tokens`` and ``suffix_tokens`` when items have learned vectors around them
  (``prefixes.py``), and ``experts`` and ``routers`` when there are experts (``experts/processing.py``);
- ``processors/<source>/``: that source's (or expert's) native processor: the files of its own checkpoint, copied, or
  what its own ``save_pretrained`` writes;
- ``chat_template.jinja`` when the base model has one.

``write_processor`` writes all of it from source folders and loads no processor but the tokenizer; ``build_processor``
makes the object from live processors, and its ``save_pretrained`` writes the same files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from ..configuration.composed import AUTO_MAP
from ..experts.processing import ExpertMedia
from ..families import MODALITIES, PLACEHOLDERS, PROCESSOR_ARGUMENTS, TYPE_IDS
from ..names import SEPARATOR
from ..own_code import copy_own_code
from ..prefixes.tokens import prefix_counts, prefix_token_types, wrapped
from .chat import DEFAULT_TEMPLATE, flattened, media_of
from .expansion import expand_media
from .items import media_items
from .load import load_source_processor
from .native_calls import set_pad_token, without_second_bos
from .options import split_options
from .sources import (
    PROCESSOR_FOLDER,
    Unavailable,
    check_part,
    copy_source_processor,
    write_stubs,
)
from .tokens import add_placeholders, structure_ids

__all__ = ["ComposedProcessor", "add_placeholders", "build_processor", "structure_ids", "write_processor"]


class ComposedProcessor(ProcessorMixin):
    """Prepares text with any mix of media for a composed model.

    Args:
        tokenizer: The composition's tokenizer.
        sources: Source name -> ``{"model_type": str, "modalities": [str, ...]}``.
        chat_template: Template over messages with plain string contents; None takes the tokenizer's own.
        prefix_tokens: Modality -> learned vectors before each of its items, as ``ComposedConfig`` has them.
        suffix_tokens: Modality -> learned vectors after each of its items.
        experts: Expert -> what ``processing_experts.expert_summary`` says of it.
        routers: Modalities that have a router.
    """

    def __init__(
        self,
        tokenizer: Any = None,
        sources: Mapping[str, Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        prefix_tokens: Mapping[str, int] | None = None,
        suffix_tokens: Mapping[str, int] | None = None,
        experts: Mapping[str, Mapping[str, Any]] | None = None,
        routers: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.sources = {name: dict(entry) for name, entry in (sources or {}).items()}
        self.prefixes = prefix_counts(prefix_tokens, suffix_tokens)
        self.processors: dict[str, Any] = {}
        self.expert_media = ExpertMedia(experts, routers)
        self.unfinished = False  # a writer that brings the code and the sources' files itself says True
        super().__init__(tokenizer, chat_template=chat_template)
        self.auto_map = {"AutoProcessor": AUTO_MAP["AutoProcessor"]}
        self.ids = {
            modality: tokenizer.convert_tokens_to_ids(PLACEHOLDERS[modality])
            for modality in MODALITIES
            if self.served_by(modality)
        }
        self.types = {PLACEHOLDERS[modality]: TYPE_IDS[modality] for modality in self.ids}
        if any(self.prefixes.values()):
            self.types.update(prefix_token_types(self.prefixes, tokenizer))
        self.types.update(self.expert_media.token_types(tokenizer))

    def served_by(self, modality: str) -> str | None:
        """Returns the name of the source that serves a modality, or None."""
        return next((name for name, entry in self.sources.items() if modality in entry["modalities"]), None)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        points: Any = None,
        audios: Any = None,
        experts: Any = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepares a prompt or a batch of prompts.

        Args:
            images: Images in the order of their placeholders over the whole batch; flat, or nested per prompt.
            text: One prompt or several, with ``<image>``, ``<video>``, ``<audio>``, ``<points>`` where media go.
            videos: Videos: arrays (frames, height, width, channels), lists of frames, or paths.
            audio: Sounds: 1-D arrays at the source's sampling rate.
            points: Clouds: arrays (points, 3).
            audios: Another name of ``audio``.
            experts: Which expert sees an item: "auto" (the router is asked; the default where there is one), "none", a
                name for all items, or a list with a name or None per item in reading order (a mapping of modality to
                such a list when experts of several modalities are there). A tuple of names gives several blocks.
            return_tensors: "pt", or None for lists of ids (media stay tensors).
            **kwargs: For the tokenizer (``padding``, ``max_length``), and ``sampling_rate`` for the audio source.

        Returns:
            ``input_ids``, ``attention_mask``, ``mm_token_type_ids`` (0 text, 1 image, 2 video, 3 audio, 4 points, 5
            expert), and the media as ``<source>__<native name>`` and ``<expert>__<native name>``.

        Raises:
            ValueError: When placeholders, media and routes differ in number, or no source serves a modality.
        """
        if audio is not None and audios is not None:
            raise ValueError("Pass audio or audios, not both.")
        texts = _texts(text)
        given = {"image": images, "video": videos, "audio": audio if audios is None else audios, "points": points}
        media = {modality: media_items(modality, value) for modality, value in given.items()}
        routes = self.expert_media.routes(experts, {modality: len(items) for modality, items in media.items()})
        text_options, own_options = split_options(kwargs)
        rate = own_options["audio"].pop("sampling_rate", None)
        tensors: dict[str, Any] = {}
        for modality in MODALITIES:
            counts = [row.count(PLACEHOLDERS[modality]) for row in texts]
            self._check(modality, counts, media[modality])
            if media[modality]:
                told = {"sampling_rate": rate} if rate is not None and modality == "audio" else {}
                options = {**own_options[modality], **told}
                beside = self.processors[str(self.served_by(modality))]
                behind, found = self.expert_media.prepare(modality, media[modality], routes, rate=rate, beside=beside)
                texts, made = self._expanded(modality, texts, counts, media[modality], options, behind)
                tensors.update(made | found)
        return self._encoded(texts, tensors, return_tensors, text_options)

    def _check(self, modality: str, counts: list[int], items: list[Any]) -> None:
        if (items or sum(counts)) and self.served_by(modality) is None:
            raise ValueError(
                f"No source of this composition serves {modality}; it has {', '.join(self.ids) or 'none'}."
            )
        if sum(counts) != len(items):
            raise ValueError(
                f"The text has {sum(counts)} {PLACEHOLDERS[modality]} placeholder(s), "
                f"and {len(items)} {modality} item(s) came."
            )

    def _expanded(
        self,
        modality: str,
        texts: list[str],
        counts: list[int],
        items: list[Any],
        options: dict[str, Any],
        behind: list[str],
    ) -> tuple[list[str], dict[str, Any]]:
        name = str(self.served_by(modality))
        rest = iter(items)
        rows = [[next(rest) for _ in range(count)] for count in counts]
        check_part(self.processors[name], modality, name)
        made = expand_media(
            self.processors[name],
            modality,
            [row for row in rows if row],
            model_type=self.sources[name]["model_type"],
            known=frozenset(map(str, (*self.tokenizer.get_added_vocab(), *self.tokenizer.all_special_tokens))),
            options=options,
        )
        fill = iter(zip((wrapped(each, modality, self.prefixes) for each in made.texts), behind, strict=True))
        texts = [made.fill(row, PLACEHOLDERS[modality], fill) for row in texts]
        tensors = {f"{name}{SEPARATOR}{key}": value for key, value in made.tensors.items()}
        if modality in self.expert_media.routers:
            lengths = [each.count(PLACEHOLDERS[modality]) for each in made.texts]
            tensors[f"{modality}_item_tokens"] = torch.tensor(lengths)
        return texts, tensors

    def _encoded(
        self, texts: list[str], tensors: dict[str, Any], return_tensors: str | None, kwargs: dict[str, Any]
    ) -> BatchFeature:
        set_pad_token(self.tokenizer)
        # Rows of different lengths cannot become one tensor, so they are padded unless asked otherwise.
        kwargs.setdefault("padding", len(texts) > 1)
        encoded = self.tokenizer(texts, **{**kwargs, "return_token_type_ids": False})
        ids = encoded["input_ids"]
        kinds = {self.tokenizer.convert_tokens_to_ids(token): kind for token, kind in self.types.items()}
        for token, index in zip(self.types, kinds, strict=True):
            wanted = sum(row.count(token) for row in texts)
            if sum(row.count(index) for row in ids) != wanted:
                raise ValueError(
                    f"Truncation cut {token.strip('<>')} placeholders; raise max_length or shorten the text."
                )
        data: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": encoded["attention_mask"],
            "mm_token_type_ids": [[kinds.get(index, 0) for index in row] for row in ids],
        }
        if return_tensors is not None:
            data = {key: torch.tensor(value) for key, value in data.items()}
        return BatchFeature({**data, **tensors})

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        tokenize: bool = False,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Renders chats; contents may be strings or lists of text and media entries.

        Args:
            conversation: Messages, or a batch of them.
            chat_template: Template to use instead of the checkpoint's own.
            tokenize: Whether to process the text too, with the media that the entries hold (``{"type": "image",
                "image": ...}``).
            return_dict: Whether to return everything or ``input_ids`` only, when tokenizing.
            **kwargs: For the template (``add_generation_prompt``) and, when tokenizing, in ``processor_kwargs``.

        Returns:
            The text (or texts), or the processed batch.
        """
        one = not conversation or isinstance(conversation[0], Mapping)
        batch = [conversation] if one else list(conversation)
        template = chat_template or self.chat_template or self.tokenizer.chat_template or DEFAULT_TEMPLATE
        own = {key: kwargs.pop(key) for key in ("return_tensors", "padding", "experts") if key in kwargs}
        own.update(kwargs.pop("processor_kwargs", None) or {})
        texts = [
            self.tokenizer.apply_chat_template(flattened(chat), chat_template=template, tokenize=False, **kwargs)
            for chat in batch
        ]
        if not tokenize:
            return texts[0] if one else texts
        held = {modality: [item for chat in batch for item in media_of(chat)[modality]] for modality in MODALITIES}
        media = {PROCESSOR_ARGUMENTS[modality]: items or None for modality, items in held.items()}
        out = self(text=texts, **media, **{**without_second_bos(self.tokenizer, texts), **own})
        return out if return_dict else out["input_ids"]

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a call returns, apart from the media of sources whose processor names none."""
        names = ["input_ids", "attention_mask", "mm_token_type_ids"]
        for source, processor in self.processors.items():
            text = set(processor.tokenizer.model_input_names) if hasattr(processor, "tokenizer") else set()
            own = getattr(processor, "model_input_names", [])
            names += [f"{source}{SEPARATOR}{name}" for name in own if name not in text]
        return list(dict.fromkeys([*names, *self.expert_media.input_names()]))

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Writes the tokenizer, ``processor_config.json``, every source's processor, and the code."""
        for name, processor in self.processors.items():
            if isinstance(processor, Unavailable) or getattr(processor, "missing_parts", None):
                raise ValueError(f"The processor of source {name!r} was not loaded whole; copy its files instead.")
            processor.save_pretrained(Path(save_directory) / PROCESSOR_FOLDER / name)
        self.expert_media.save(save_directory)
        write_stubs(Path(save_directory), {name: entry["model_type"] for name, entry in self.sources.items()})
        if not self.unfinished:
            copy_own_code(save_directory)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Returns what ``processor_config.json`` holds; the sources' processors have folders of their own."""
        whole = {"auto_map": self.auto_map, "processor_class": type(self).__name__, "sources": self.sources}
        around = {f"{side}_tokens": counts for side, counts in self.prefixes.items() if counts}
        return whole | around | self.expert_media.settings()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> ComposedProcessor:
        """Loads the processor of a composed checkpoint, from a folder or from the Hub."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        asked = {
            key: value for key, value in kwargs.items() if key not in ("config", "_from_auto", "trust_remote_code")
        }
        for name, entry in loaded.sources.items():
            loaded.processors[name] = load_source_processor(
                pretrained_model_name_or_path, name, model_type=entry["model_type"], **asked
            )
        loaded.expert_media.load(pretrained_model_name_or_path, **asked)
        return loaded


def build_processor(
    tokenizer: Any,
    sources: Mapping[str, Mapping[str, Any]],
    *,
    processors: Mapping[str, Any],
    chat_template: str | None = None,
    prefix_tokens: Mapping[str, int] | None = None,
    suffix_tokens: Mapping[str, int] | None = None,
    **experts: Any,
) -> ComposedProcessor:
    """Makes a composed processor; its ``save_pretrained(dir)`` writes all its files.

    Args:
        tokenizer: The composition's tokenizer, after :func:`add_placeholders`.
        sources: Source name -> entry with ``model_type`` and ``modalities`` (those of ``ComposedConfig.sources`` do).
        processors: Source name -> its native processor.
        chat_template: Template over string contents; None takes the tokenizer's own.
        prefix_tokens: Modality -> learned vectors before each of its items; needs :func:`prefix_fields` first.
        suffix_tokens: Modality -> learned vectors after each of its items.
        **experts: ``experts`` and ``routers``, as :class:`ComposedProcessor` takes them.
    """
    short = {
        name: {"model_type": entry["model_type"], "modalities": list(entry["modalities"])}
        for name, entry in sources.items()
    }
    made = ComposedProcessor(
        tokenizer,
        sources=short,
        chat_template=chat_template,
        prefix_tokens=prefix_tokens,
        suffix_tokens=suffix_tokens,
        **experts,
    )
    made.processors = {name: processors[name] for name in short if name in processors}
    return made


def write_processor(
    folder: str | Path,
    tokenizer: Any,
    sources: Mapping[str, Mapping[str, Any]],
    *,
    folders: Mapping[str, str | Path],
    chat_template: str | None = None,
    prefix_tokens: Mapping[str, int] | None = None,
    suffix_tokens: Mapping[str, int] | None = None,
    **experts: Any,
) -> list[Path]:
    """Writes every processor file of a composed checkpoint; the sources' processors are copied, not loaded.

    Args:
        folder: The composed checkpoint.
        tokenizer: The composition's tokenizer, after :func:`add_placeholders`.
        sources: Source name -> entry with ``model_type`` and ``modalities`` (those of ``ComposedConfig.sources`` do).
        folders: Source or expert name -> its own checkpoint folder; one that is left out is written by others.
        chat_template: Template over string contents; None takes the tokenizer's own.
        prefix_tokens: Modality -> learned vectors before each of its items; needs :func:`prefix_fields` first.
        suffix_tokens: Modality -> learned vectors after each of its items.
        **experts: ``experts`` and ``routers``, as :class:`ComposedProcessor` takes them.

    Returns:
        All files below ``folder`` that belong to the processor, sorted.
    """
    folder = Path(folder)
    made = build_processor(
        tokenizer,
        sources,
        processors={},
        chat_template=chat_template,
        prefix_tokens=prefix_tokens,
        suffix_tokens=suffix_tokens,
        **experts,
    )
    made.unfinished = True
    before = _stamps(folder)
    made.save_pretrained(folder)
    for name in (*sources, *made.expert_media.entries):
        if name in folders:
            copy_source_processor(Path(folders[name]), folder, name)
    return sorted(path for path, stamp in _stamps(folder).items() if before.get(path) != stamp)


def _stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def _texts(text: str | Sequence[str] | None) -> list[str]:
    texts = [text] if isinstance(text, str) else list(text or [])
    if not texts or not all(isinstance(row, str) for row in texts):
        raise ValueError("Pass text as a string or a list of strings.")
    return texts
