"""Which settings of a language model follow its layers to new places, and refusal of those that cannot.

Slices take layers from where they were trained and stack them in another order and number. A config says what a layer
is by its place. The settings that the output needs are found by building, without weights, the model of the output's
config and those of the sources, and comparing every layer with the one that it comes from; nothing rests on a list of
names. In turn: lists of the written config that have one entry a layer; those that transformers derives from other
settings; lists of layer numbers, and numbers of layers at one end. What is then still different is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mcompose.compose.config_tables import merged, table_at, text_place
from mcompose.errors import AnatomyError, CompositionError

if TYPE_CHECKING:
    from mcompose.anatomy import DecoderFacts
    from mcompose.merge import SourceParts

__all__ = ["MovedLayers", "move_layers"]

DEPTH = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""How configs spell the number of decoder layers."""

NOT_BY_LAYER = ("architectures", "token_id", "token_ids")
"""Ends of the names of lists that may be as long as the model is deep, and have nothing to do with its layers."""

HINT = "Choose ranges that leave every layer where it was, or an architecture whose layers are all of one kind."


@dataclass(frozen=True)
class MovedLayers:
    """What the language config of an output with moved layers says.

    Args:
        fields: Settings that change; none when the layers stay as they are.
        warnings: Sentences for the user.
    """

    fields: Mapping[str, Any]
    warnings: tuple[str, ...] = ()


def move_layers(
    owner: SourceParts, sources: Mapping[str, SourceParts], places: Sequence[tuple[str, int]]
) -> MovedLayers:
    """Finds the settings of an output whose layers come from other places.

    Args:
        owner: The source whose config the output keeps.
        sources: Name to source.
        places: For each layer of the output, the source and layer that it comes from; none when all stay.

    Returns:
        The settings.

    Raises:
        CompositionError: A setting goes by the layers' places and cannot be written so that they stay what they are.
    """
    if not places:
        return MovedLayers({})
    layers = [layer for _, layer in places]
    config = _language_model(owner)
    written = table_at(config, text_place(config))
    fields = _written_fields(written, layers, depth=owner.anatomy.num_layers)
    facts = {name: _facts(_language_model(sources[name])) for name in dict.fromkeys(name for name, _ in places)}
    if any(fact is None for fact in facts.values()):
        unchecked = next(name for name, fact in facts.items() if fact is None)
        return MovedLayers(
            fields,
            (f"transformers cannot build '{unchecked}', so that settings by a layer's place could not be checked.",),
        )
    known = {name: fact for name, fact in facts.items() if fact is not None}
    return MovedLayers(_Search(owner.name, config, known, places).solve(fields))


def _language_model(source: SourceParts) -> Mapping[str, Any]:
    """Returns the config of the part of a source that generates text, or of its language model in a composed one."""
    from mcompose.anatomy import config_for_meta  # noqa: PLC0415 - only where layers move

    return config_for_meta(source.checkpoint.config, source.anatomy.text_config)


def _facts(config: Mapping[str, Any]) -> DecoderFacts | None:
    from mcompose.anatomy import decoder_facts, is_known  # noqa: PLC0415 - torch and transformers, for slices only

    return decoder_facts(config) if is_known(str(config["model_type"])) else None


def _written_fields(config: Mapping[str, Any], layers: Sequence[int], *, depth: int) -> dict[str, Any]:
    """Returns the new depth, and the lists of the config that have one entry for each layer."""
    spelling = next((name for name in DEPTH if name in config), DEPTH[0])
    return {spelling: len(layers), **_moved_lists(config, layers, depth=depth)}


def _moved_lists(config: Mapping[str, Any], layers: Sequence[int], *, depth: int) -> dict[str, Any]:
    return {
        name: [value[layer] for layer in layers]
        for name, value in config.items()
        if isinstance(value, list) and len(value) == depth and not name.endswith(NOT_BY_LAYER)
    }


class _Search:
    """Finds fields with which every layer of the output is the layer that it comes from."""

    def __init__(
        self,
        owner: str,
        config: Mapping[str, Any],
        facts: Mapping[str, DecoderFacts],
        places: Sequence[tuple[str, int]],
    ) -> None:
        self._owner, self._config, self._facts, self._places = owner, config, facts, places
        self._layers = [layer for _, layer in places]
        self._place = text_place(config)
        self._mine = facts.get(owner) or next(iter(facts.values()))
        self._fault = ""

    def solve(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the fields, more where needed; refuses when none are found."""
        derived = {**fields, **_moved_lists(self._mine.settings, self._layers, depth=len(self._mine.layers))}
        best, wrong = dict(fields), self._wrong(fields)
        if wrong:
            best, wrong = self._better(best, wrong, derived)
        for name, value in self._candidates():
            if not wrong:
                break
            best, wrong = self._better(best, wrong, {**best, name: value})
        if wrong:
            raise self._refusal(best, wrong)
        self._refuse_unseen(best)
        return best

    def _better(
        self, best: dict[str, Any], wrong: list[int], other: dict[str, Any]
    ) -> tuple[dict[str, Any], list[int]]:
        found = self._wrong(other)
        return (other, found) if len(found) < len(wrong) else (best, wrong)

    def _built(self, fields: Mapping[str, Any]) -> DecoderFacts | None:
        try:
            return _facts({**self._config, **merged({}, self._config, self._place, fields)})
        except AnatomyError as error:
            self._fault = error.message
            return None

    def _wrong(self, fields: Mapping[str, Any]) -> list[int]:
        """Returns the output's layers that are not what they were."""
        built = self._built(fields)
        everything = list(range(len(self._places)))
        if built is None or len(built.layers) != len(self._places) or built.outside != self._mine.outside:
            return everything
        wrong: list[int] = []
        for name, facts in self._facts.items():
            places = [layer if source == name else 0 for source, layer in self._places]
            mine = [k for k, (source, _) in enumerate(self._places) if source == name]
            wrong += [k for k in facts.different(built, places) if k in mine]
        return sorted(wrong)

    def _candidates(self) -> Iterator[tuple[str, Any]]:
        """Yields settings with values that could keep the layers: lists of layer numbers, then numbers of layers."""
        depth = len(self._mine.layers)
        for name, value in self._mine.settings.items():
            if _names_layers(value, depth):
                yield name, [place for place, layer in enumerate(self._layers) if layer in value]
        for name, value in self._mine.settings.items():
            if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= depth and name not in DEPTH:
                first = [layer < value for layer in self._layers]
                yield name, next((k for k, inside in enumerate(first) if not inside), len(first))
                last = [layer >= depth - value for layer in reversed(self._layers)]
                yield name, next((k for k, inside in enumerate(last) if not inside), len(last))

    def _refuse_unseen(self, fields: Mapping[str, Any]) -> None:
        """Refuses lists of layer numbers that the network reads elsewhere than in its layers."""
        depth = len(self._mine.layers)
        for name, value in self._mine.settings.items():
            moved = [
                place for place, layer in enumerate(self._layers) if _names_layers(value, depth) and layer in value
            ]
            speaks = "layer" in name or "index" in name
            if name in fields or not speaks or not _names_layers(value, depth) or moved == value:
                continue
            other = _facts({**self._config, **merged({}, self._config, self._place, {name: []})})
            if other is None or not self._mine.different(other, range(depth)):
                raise self._error(f"`{name}` names layers by their numbers")

    def _refusal(self, fields: Mapping[str, Any], wrong: Sequence[int]) -> CompositionError:
        names = self._culprits()
        built = self._built(fields)
        if names:
            listed = ", ".join(f"`{name}`" for name in names)
            return self._error(f"what a layer is goes by its place ({listed})")
        if built is None or len(built.layers) != len(self._places):
            return self._error(self._fault.rstrip(".") or "the depth does not follow from one setting")
        if built.outside != self._mine.outside:
            name = next(
                n for n in [*self._mine.outside, *built.outside] if self._mine.outside.get(n) != built.outside.get(n)
            )
            return self._error(f"the shape of '{name}' goes by the number of layers")
        source, layer = self._places[wrong[0]]
        return self._error(f"for layer {wrong[0]}, {self._facts[source].difference(built, wrong[0], layer)}")

    def _culprits(self) -> list[str]:
        """Returns the settings that decide of which kind a layer is; else those that change some layers and not all."""
        depth, kinds, partial = len(self._mine.layers), [], []
        for name, value in self._mine.settings.items():
            for other in _others(value, depth):
                try:
                    facts = _facts({**self._config, **merged({}, self._config, self._place, {name: other})})
                except AnatomyError:
                    continue
                if facts is None or len(facts.layers) != depth or facts.outside != self._mine.outside:
                    continue
                changed = self._mine.different(facts, range(depth), beside=name)
                if 0 < len(changed) < depth:
                    partial.append(name)
                if changed and all(self._has_kind(facts, place, beside=name) for place in changed):
                    kinds.append(name)
        return list(dict.fromkeys(kinds or partial))

    def _has_kind(self, facts: DecoderFacts, place: int, *, beside: str) -> bool:
        """Returns whether a layer of another decoder is of a kind that the source has at another place."""
        depth = len(self._mine.layers)
        return any(place not in self._mine.different(facts, [taken] * depth, beside=beside) for taken in range(depth))

    def _error(self, reason: str) -> CompositionError:
        return CompositionError(
            f"'merge.slices' give layers of '{self._owner}' other places ({len(self._mine.layers)} layers become "
            f"{len(self._places)}), and its config cannot say so: {reason}.",
            hint=HINT,
        )


def _names_layers(value: Any, depth: int) -> bool:
    """Returns whether a setting can be a list of layer numbers."""
    if not isinstance(value, list) or not value:
        return False
    numbers = [item for item in value if isinstance(item, int) and not isinstance(item, bool)]
    return (
        len(numbers) == len(value)
        and sorted(dict.fromkeys(numbers)) == numbers
        and 0 <= numbers[0] <= numbers[-1] < depth
    )


def _others(value: Any, depth: int) -> list[Any]:
    """Returns other values of a setting, for a look at what it does."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int) and 0 <= value <= depth:
        return [other for other in (value + 1, value - 1) if other >= 0]
    return [[]] if _names_layers(value, depth) else []
