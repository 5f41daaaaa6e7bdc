"""Makes batches of samples: the processor's output, and labels on the tokens to train.

Media are read here, so that a loader's workers read them. Every sample becomes one row; a problem with a sample is an
error that names its place. The collator does not skip samples; the mixture does.

Letters: B samples, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import xxhash

from mcompose.align.data.answer_spans import START, mark, marking_processor
from mcompose.align.data.conversation import ChatWriter
from mcompose.align.data.expert_routing import Routing
from mcompose.align.data.samples import Sample
from mcompose.errors import RequestError
from mcompose.media import read_media
from mcompose.modalities import MODALITIES
from mcompose.modeling import SEPARATOR, TYPE_IDS, call_processor, sampling_rate, without_second_bos

__all__ = ["IGNORED", "Collator", "can_pack", "expert_key_name", "media_digest", "takes_positions"]

IGNORED: Final = -100
_ROW_TENSORS: Final = ("input_ids", "attention_mask", "mm_token_type_ids", "labels")


class Collator:
    """Makes batches for one checkpoint.

    Args:
        processor: Its processor, or its tokenizer when it takes text only.
        max_length: Most tokens of a sample, media included; None for any.
        mask_answers: Whether only answers are learned; else all text is.
        domains: Names that ``domains`` in a batch counts; -1 stands for a sample without one.
        positions: Whether batches hold ``position_ids``; see :func:`takes_positions`.
        packing: Whether a batch is one row without padding; see :func:`can_pack`.
        media_keys: Whether batches hold ``media_keys``, by which a :class:`FeatureCache` knows their items.
        routing: Which experts media go to, for checkpoints with experts; None for none of them.
        tasks: Names that ``tasks`` in a batch counts, by which losses are told apart; empty: batches have none.
        chat_template: Template to use instead of the checkpoint's own.
    """

    def __init__(  # noqa: PLR0913 - one setting each, all by name
        self,
        processor: Any,
        *,
        max_length: int | None,
        mask_answers: bool = True,
        domains: Sequence[str] = (),
        positions: bool = True,
        packing: bool = False,
        media_keys: bool = False,
        routing: Routing | None = None,
        tasks: Sequence[str] = (),
        chat_template: str | None = None,
    ) -> None:
        self.processor = processor
        self.max_length = max_length
        self.mask_answers = mask_answers
        self.domains = tuple(domains)
        self.positions = positions or packing
        self.packing = packing
        self.media_keys = media_keys
        self.routing = routing
        self.tasks = tuple(tasks)
        self.writer = ChatWriter(processor, chat_template=chat_template)
        self._call, self._marking = marking_processor(processor)
        self._rate = sampling_rate(processor)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer behind the processor."""
        return getattr(self.processor, "tokenizer", self.processor)

    def __call__(self, samples: Sequence[Sample], positions: Sequence[int] = ()) -> dict[str, Any]:
        """Makes a batch.

        Args:
            samples: The samples.
            positions: Their places in the stage, by which noise of the routing is addressed.

        Returns:
            ``input_ids``, ``attention_mask``, ``position_ids``, ``mm_token_type_ids``, ``labels`` (-100 where nothing
            is learned), all (B, L) and padded on the right; ``domains`` (B,); and the media as the processor made them.
            Where tasks are told apart: ``tasks``, one number a sample.
            Where a router is trained: ``router_labels``, one class an item (-100 where it learns nothing).
            Packed: one row (1, L), positions that begin again at 0 with each sample, and no ``attention_mask``, which
            is how transformers tells packed rows.

        Raises:
            RequestError: A medium cannot be read, a sample does not fit the checkpoint or is too long.
        """
        batch = self.encode(samples, positions)
        self._check_lengths(samples, batch)
        if self.media_keys:
            batch["media_keys"] = self._media_keys(samples, positions)
        batch["domains"] = torch.tensor([self._domain(sample) for sample in samples])
        if self.tasks:
            batch["tasks"] = torch.tensor([self.tasks.index(sample.task) for sample in samples])
        if self.routing is not None and self.routing.labelled:
            batch |= _router_labels(self.routing.labels(samples))
        if self.packing:
            return _packed(batch)
        if self.positions:
            batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        return batch

    def length(self, sample: Sample) -> int:
        """Tokens of one sample, its media included, whatever the limit; of a pair's longer answer."""
        rows = [one for one in (sample, sample.other) if one is not None]
        return int(self.encode(rows)["attention_mask"].sum(-1).max())

    def media_inputs(self, modality: str, items: Sequence[Path | bytes]) -> dict[str, Any]:
        """Returns the processor's output for media alone, under the names that a model takes."""
        read = [read_media(item, modality, sampling_rate=self._rate) for item in items]
        encoded = self._processed([self.writer.placeholders[modality] * len(read)], {modality: [read]}, experts="none")
        text = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
        return {name: value for name, value in encoded.items() if name not in text}

    def expert_inputs(self, name: str, modality: str, items: Sequence[Path | bytes]) -> dict[str, Any]:
        """Returns what the processor makes of media for an expert, by the encoder's own names."""
        read = [read_media(item, modality, sampling_rate=self._rate) for item in items]
        text = self.writer.placeholders[modality] * len(read)
        encoded = self._processed([text], {modality: [read]}, experts=[name] * len(read))
        begun = f"{name}{SEPARATOR}"
        return {key.removeprefix(begun): value for key, value in encoded.items() if key.startswith(begun)}

    def item_inputs(self, modality: str, items: Sequence[Path | bytes]) -> tuple[dict[str, Any], list[int]]:
        """Like :meth:`media_inputs`, and the placeholder tokens that each item becomes."""
        rows = [[read_media(item, modality, sampling_rate=self._rate)] for item in items]
        encoded = self._processed([self.writer.placeholders[modality]] * len(rows), {modality: rows}, experts="none")
        tokens = (encoded["mm_token_type_ids"] == TYPE_IDS[modality]).sum(-1).tolist()
        text = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
        return {name: value for name, value in encoded.items() if name not in text}, tokens

    def encode(self, samples: Sequence[Sample], positions: Sequence[int] = ()) -> dict[str, Any]:
        """Returns the batch without limit, domains and positions; see :meth:`__call__`."""
        texts = [self._text(sample) for sample in samples]
        media = {modality: [self._read(sample, modality) for sample in samples] for modality in MODALITIES}
        given = {modality: rows for modality, rows in media.items() if any(rows)}
        experts = "none" if self.routing is None else self.routing.experts(samples, positions)
        try:
            encoded = self._processed(texts, given, experts=experts)
        except ValueError as error:
            raise RequestError(f"{_places(samples)}: {error}") from error
        batch = {name: value for name, value in encoded.items() if name != "token_type_ids"}
        if "mm_token_type_ids" not in batch:
            batch["mm_token_type_ids"] = self._types(batch["input_ids"])
        batch["labels"] = self._labels(batch)
        return batch

    def _text(self, sample: Sample) -> str:
        written = self.writer.write(sample)
        spans = written.answers if self.mask_answers else [(0, len(written.text))]
        try:
            return mark(written.text, spans)
        except RequestError as error:
            raise RequestError(f"{sample.place}: {error.message}") from error

    def _read(self, sample: Sample, modality: str) -> list[Any]:
        items = sample.media().get(modality, [])
        try:
            return [read_media(item, modality, sampling_rate=self._rate) for item in items]
        except RequestError as error:
            raise RequestError(f"{sample.place}: {error.message}", hint=error.hint) from error

    def _processed(self, texts: list[str], media: Mapping[str, list[list[Any]]], *, experts: Any) -> Any:
        options = without_second_bos(self.tokenizer, [text.removeprefix(START) for text in texts])
        return call_processor(self._call, texts, media, text_options=options, experts=experts)

    def _types(self, ids_BL: torch.Tensor) -> torch.Tensor:
        types_BL = torch.zeros_like(ids_BL)
        for modality, kind in TYPE_IDS.items():
            index = getattr(self.processor, f"{modality}_token_id", None)
            if isinstance(index, int):
                types_BL = types_BL.masked_fill(ids_BL == index, kind)
        return types_BL

    def _labels(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        learnt_BL = torch.from_numpy(np.stack(self._marking.marked))
        learnt_BL &= batch["attention_mask"].bool() & (batch["mm_token_type_ids"] == 0)
        return batch["input_ids"].masked_fill(~learnt_BL, IGNORED)

    def _check_lengths(self, samples: Sequence[Sample], batch: dict[str, Any]) -> None:
        lengths = batch["attention_mask"].sum(-1).tolist()
        limit = self.max_length
        if limit is None or max(lengths) <= limit:
            return
        for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
            if length > limit:
                self._cut(sample, row, batch, length)
        for name in _ROW_TENSORS:
            batch[name] = batch[name][:, :limit]

    def _cut(self, sample: Sample, row: int, batch: dict[str, Any], length: int) -> None:
        limit = int(self.max_length or 0)
        if sample.on_long != "cut":
            raise RequestError(
                f"{sample.place}: the sample has {length} tokens, and the limit is {limit}.",
                hint="Raise 'max_length', or set 'on_long: skip' or 'on_long: cut' for this dataset.",
            )
        if (batch["mm_token_type_ids"][row, limit:] != 0).any():
            raise RequestError(f"{sample.place}: cutting the sample to {limit} tokens would cut a medium.")
        if (batch["labels"][row, :limit] == IGNORED).all():
            raise RequestError(f"{sample.place}: cutting the sample to {limit} tokens would leave no answer.")

    def expert_of(self, sample: Sample, modality: str) -> str | None:
        """The expert that a sample's media go to, noise apart; None where there is none or the router is asked."""
        if self.routing is None or self.routing.spec.routing == "predicted":
            return None
        return self.routing.table.expert_of(sample.domain, modality)

    def _media_keys(self, samples: Sequence[Sample], positions: Sequence[int]) -> dict[str, torch.Tensor]:
        """Modality or expert -> digests of its items in reading order of the batch (N, 2), as integers."""
        found: dict[str, list[bytes]] = {}
        for sample in samples:
            for modality, items in sample.media().items():
                found.setdefault(modality, []).extend(media_digest(item) for item in items)
        for modality, routes in self._routes(samples, positions).items():
            for content, route in zip(found.get(modality, []), routes, strict=True):
                if route is not None:
                    found.setdefault(expert_key_name(route), []).append(content)
        return {
            m: torch.from_numpy(np.frombuffer(b"".join(d), np.int64).reshape(-1, 2).copy()) for m, d in found.items()
        }

    def _routes(self, samples: Sequence[Sample], positions: Sequence[int]) -> dict[str, list[str | None]]:
        """Modality -> expert of each of its media; nothing where the router is asked."""
        if self.routing is None:
            return {}
        routes = self.routing.experts(samples, positions)
        if isinstance(routes, list):
            return {self.routing.table.modalities[0]: routes}
        return {} if isinstance(routes, str) else routes

    def _domain(self, sample: Sample) -> int:
        if sample.domain is None or not self.domains:
            return -1
        if sample.domain not in self.domains:
            raise RequestError(
                f"{sample.place}: the domain '{sample.domain}' must be one of {', '.join(self.domains)}."
            )
        return self.domains.index(sample.domain)


def media_digest(item: Path | bytes) -> bytes:
    """16 bytes that stand for the content of a medium's file."""
    return xxhash.xxh3_128(item if isinstance(item, bytes) else item.read_bytes()).digest()


def expert_key_name(name: str) -> str:
    """Returns under what name ``media_keys`` holds the items of an expert."""
    return f"expert:{name}"


def _router_labels(labels: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Returns one tensor where there is one router, else one a modality; nothing where no item came."""
    if not any(labels.values()):
        return {}
    made = {modality: torch.tensor(classes, dtype=torch.long) for modality, classes in labels.items()}
    return {"router_labels": next(iter(made.values())) if len(made) == 1 else made}


def takes_positions(model: Any) -> bool:
    """Whether a model may be given plain ``position_ids``: not those that count over media or from another start."""
    inner = getattr(model, "model", model)
    if hasattr(inner, "towers"):
        return not inner.mrope and not inner.first_position
    return not any(hasattr(part, "get_rope_index") for part in (model, inner))


def can_pack(model: Any) -> bool:
    """Whether rows of several samples keep them apart: causal attention everywhere, positions in one dimension."""
    inner = getattr(model, "model", model)
    text = model.config.get_text_config(decoder=True)
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    causal = getattr(inner, "attention", None) == "causal" if hasattr(inner, "towers") else False
    return causal and takes_positions(model) and kinds <= {"full_attention", "sliding_attention"}


def _packed(batch: dict[str, Any]) -> dict[str, Any]:
    mask_BL = batch.pop("attention_mask").bool()
    positions_BL = mask_BL.cumsum(-1) - 1
    # The first token of a sample would be learned from the last of the one before.
    batch["labels"] = batch["labels"].masked_fill(positions_BL == 0, IGNORED)
    for name in ("input_ids", "mm_token_type_ids", "labels"):
        batch[name] = batch[name][mask_BL][None]
    batch["position_ids"] = positions_BL[mask_BL][None]
    return batch


def _places(samples: Sequence[Sample]) -> str:
    shown = [sample.place for sample in samples[:3]]
    return ", ".join(shown) + (f" and {len(samples) - 3} more" if len(samples) > 3 else "")
