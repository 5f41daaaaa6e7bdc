"""The model card: a pure function of the ledger, the recipe's text and the output's own config.

Everything that the card says comes from those files, so it can be written again at any time and gives the same text.
Its last line holds a digest of the rest: a card that a person has edited is recognised and kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import yaml

from mcompose.card_mark import is_edited_card, with_mark
from mcompose.ledger import FileRow, Ledger, SourceRow, TensorRow
from mcompose.on_disk import CARD, FOLDER, RECIPE
from mcompose.publish.licences import licence_fields, licence_remarks
from mcompose.publish.snippet import usage_snippet
from mcompose.publish.traces import without_machine_paths
from mcompose.refs import ModelRef
from mcompose.whole_files import write_text

__all__ = ["model_card", "write_card"]

_ACTIONS = ("merged", "folded", "copied", "cast", "created")
_TRAINED = "trained"
_MAX_DROPPED = 12


def model_card(ledger: Ledger, folder: Path, repo_id: str | None) -> str:
    """Writes the model card of an output.

    Args:
        ledger: The record of the output.
        folder: The output: ``mcompose/recipe.yaml``, ``config.json`` and plots are read from it.
        repo_id: The repository that the card is for; None for a card that stays beside the files.

    Returns:
        The card: YAML front matter and Markdown.
    """
    sections = [
        f"# {ledger.name}\n\n{_summary(ledger)}",
        f"## Use\n\n{_fence('python', usage_snippet(ledger, folder, path=repo_id or ledger.name))}",
        f"## Sources\n\n{_sources(ledger.sources)}",
        f"## Method\n\n{_method(ledger)}",
        _section("Evaluation", _evaluation(ledger, folder)),
        _section("Recipe", _recipe(folder)),
        _section("Limitations", _limitations(ledger)),
        f"## Licence\n\n{_licences(ledger.sources)}",
        f"## Provenance\n\n{_provenance(ledger)}",
    ]
    body = "\n\n".join(section for section in sections if section)
    text = f"---\n{_front_matter(ledger, repo_id)}\n---\n\n{body}\n"
    return with_mark(text)


def write_card(ledger: Ledger, folder: Path, repo_id: str | None) -> bool:
    """Writes ``README.md`` of an output, unless a person has edited the one that is there.

    Args:
        ledger: The record of the output.
        folder: The output.
        repo_id: The repository that the card is for, or None.

    Returns:
        True when the card was written, False when an edited one was kept.

    Raises:
        StorageError: The disk is full or refused the write.
    """
    path = folder / CARD
    if is_edited_card(path):
        return False
    write_text(path, model_card(ledger, folder, repo_id))
    return True


def _front_matter(ledger: Ledger, repo_id: str | None) -> str:
    base_models = _base_models(ledger.sources)
    fields: dict[str, Any] = {
        **({"base_model": base_models} if base_models else {}),
        "library_name": "transformers",
        **licence_fields(ledger.sources, repo_id=repo_id),
        "pipeline_tag": _pipeline_tag(ledger),
        "tags": ["merge", "mcompose", ledger.method, *ledger.modalities],
        **({"base_model_relation": "merge"} if base_models else {}),
    }
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True).strip()


def _base_models(sources: Iterable[SourceRow]) -> list[str]:
    """Repositories of the sources, the base last."""
    ordered = sorted(sources, key=lambda source: source.name == "base")
    refs = [ModelRef.parse(source.ref) for source in ordered]
    return list(dict.fromkeys(ref.location for ref in refs if ref.kind == "hub"))


def _pipeline_tag(ledger: Ledger) -> str:
    kinds = set(ledger.modalities)
    if ledger.output_format == "text" or not kinds:
        return "text-generation"
    if kinds <= {"image", "video"}:
        return "image-text-to-text" if "image" in kinds else "video-text-to-text"
    return "audio-text-to-text" if kinds == {"audio"} else "any-to-any"


def _summary(ledger: Ledger) -> str:
    media = [_PLURALS.get(m, m) for m in ledger.modalities] if ledger.output_format != "text" else []
    takes = _listed([*media, "text"])
    sources = [source for source in ledger.sources if source.name != "base"]
    trained = any(step.step == "align" for step in ledger.steps)
    after = "and aligned by a short fine-tune" if trained else "without any training"
    count = f"{len(sources)} models" if len(sources) != 1 else "1 model"
    return (
        f"**{ledger.name}** takes {takes} and answers in text.\n"
        f"mcompose made it from {count} that already existed, {after}; every tensor's origin is on record."
    )


_PLURALS = {"image": "images", "points": "point clouds"}


def _sources(sources: Sequence[SourceRow]) -> str:
    rows = [
        (
            source.name,
            _source_link(source),
            source.model_type or "unknown",
            _listed(source.modalities) or ("the common base" if source.name == "base" else "language"),
            source.licence or "unstated",
        )
        for source in sources
    ]
    return _table(("name", "checkpoint", "type", "contributes", "licence"), rows)


def _source_link(source: SourceRow) -> str:
    ref = ModelRef.parse(source.ref)
    if ref.kind == "local":
        return f"`{without_machine_paths(source.ref)}`"
    commit = source.commit or ref.revision or ""
    link = f"[{ref.location}](https://huggingface.co/{ref.location})"
    return f"{link} @ `{commit[:12]}`" if commit else link


def _method(ledger: Ledger) -> str:
    title = ledger.method_title or ledger.method
    paper = _paper_link(ledger.method_paper)
    text = f"The language model was merged by **{title}**{f' ({paper})' if paper else ''}, `{ledger.method}`."
    text += _common_weights(ledger.tensors)
    kept = [row for row in ledger.tensors if row.action != "dropped"]
    parts = list(dict.fromkeys(row.part or "other" for row in kept))
    actions = (*_ACTIONS, _TRAINED) if any(row.action == _TRAINED for row in kept) else _ACTIONS
    rows = [_part_row(part, [row for row in kept if (row.part or "other") == part], actions) for part in parts]
    total = _part_row("**all**", kept, actions)
    blocks = [text, _table(("part", "parameters", "tensors", *actions), [*rows, total])]
    blocks += _graphs(ledger.files)
    dropped = _dropped([row for row in ledger.tensors if row.action == "dropped"])
    return "\n\n".join([*blocks, dropped] if dropped else blocks)


def _graphs(rows: Sequence[FileRow]) -> list[str]:
    """Files that compute beside the tensors."""
    if not rows:
        return []
    lines = [
        f"- `{row.name}` ({row.part}): " + ("copied as it was" if row.action == "copied" else row.note) for row in rows
    ]
    return ["Encoders that are ONNX graphs, run by onnxruntime:\n\n" + "\n".join(lines)]


def _common_weights(rows: Iterable[TensorRow]) -> str:
    """Returns the weights, when all merged tensors have the same."""
    found = dict.fromkeys((row.sources, row.weights) for row in rows if row.action == "merged")
    sources, weights = next(iter(found), ((), ()))
    if len(found) != 1 or len(sources) != len(weights):
        return ""
    return " Weights: " + ", ".join(f"{name} {w:g}" for name, w in zip(sources, weights, strict=True)) + "."


def _part_row(part: str, rows: Sequence[TensorRow], actions: Sequence[str]) -> tuple[str, ...]:
    numbers = [sum(row.action == action for row in rows) for action in actions]
    parameters = sum(prod(row.shape) for row in rows)
    return (part, f"{parameters:,}", str(len(rows)), *(str(n) if n else "" for n in numbers))


def _dropped(rows: Sequence[TensorRow]) -> str:
    """Lists source tensors that the output does not hold, by reason."""
    if not rows:
        return ""
    groups: dict[tuple[str, str], int] = {}
    for row in rows:
        key = (", ".join(row.sources) or "unknown", row.note or "no reason given")
        groups[key] = groups.get(key, 0) + 1
    lines = [f"- {count} of {names}: {note}" for (names, note), count in list(groups.items())[:_MAX_DROPPED]]
    more = len(groups) - _MAX_DROPPED
    lines += [f"- and {more} more reasons, in `mcompose/ledger.json`"] if more > 0 else []
    return "Tensors of the sources that were left out:\n\n" + "\n".join(lines)


def _paper_link(paper: str) -> str:
    kind, _, number = paper.partition(":")
    return f"[{paper}](https://arxiv.org/abs/{number})" if kind.lower() == "arxiv" and number else paper


def _evaluation(ledger: Ledger, folder: Path) -> str:
    results = [row for step in ledger.steps if step.step == "eval" for row in step.details.get("results", [])]
    if not results:
        return ""
    rows = [
        (str(row.get("task", "")), str(row.get("metric", "")), _number(row.get("value")), str(row.get("n", "")))
        for row in results
    ]
    plots = sorted((folder / FOLDER).glob("*.png"))
    images = [f"![{plot.stem}]({FOLDER}/{plot.name})" for plot in plots]
    return "\n\n".join([_table(("task", "metric", "value", "n"), rows), *images])


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _recipe(folder: Path) -> str:
    path = folder / RECIPE
    if not path.is_file():
        return ""
    return _fence("yaml", without_machine_paths(path.read_text(encoding="utf-8", errors="replace")).strip("\n"))


def _limitations(ledger: Ledger) -> str:
    lines = [_clean(note) for step in ledger.steps for key in _NOTES for note in step.details.get(key, [])]
    widest = max((len(source.modalities) for source in ledger.sources), default=0)
    if widest < len(ledger.modalities):
        lines.append(
            "No source brings all of these modalities: answers that join them come from the composition, so "
            "measure them before relying on them."
        )
    if not any(step.step == "eval" for step in ledger.steps):
        lines.append("This model has not been evaluated.")
    lines.append("What its sources get wrong, it may get wrong too.")
    return "\n".join(f"- {line}" for line in dict.fromkeys(lines))


_NOTES = ("warnings", "notes")


def _clean(note: Any) -> str:
    return without_machine_paths(" ".join(str(note).split()))


def _licences(sources: Sequence[SourceRow]) -> str:
    stated = list(dict.fromkeys(source.licence for source in sources))
    if len(stated) == 1 and stated[0]:
        lines = [f"All sources state `{stated[0]}`; check their pages before you share or sell what you build.", ""]
    else:
        text = "The sources do not share a licence; each source's terms apply to its parts. Check that they are "
        lines = [text + "compatible with each other and with your use.", ""]
        lines += [f"- {source.name}: {source.licence or 'states none'}" for source in sources]
    return "\n".join([*lines, *(f"- {line}" for line in licence_remarks(sources))]).rstrip()


def _provenance(ledger: Ledger) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in ledger.versions.items())
    commands = [f"- `{without_machine_paths(step.command)}`" for step in ledger.steps if step.command]
    lines = [
        f"Made with {versions}." if versions else "",
        "`mcompose/lock.json` pins every source and every file, `mcompose/ledger.json` has one row per tensor, "
        "`mcompose/resolved.yaml` makes the same bytes again, and `mcompose verify` checks this folder against them.",
        "\n".join(["Commands:", "", *commands]) if commands else "",
    ]
    return "\n\n".join(line for line in lines if line)


def _section(title: str, content: str) -> str:
    return f"## {title}\n\n{content}" if content else ""


def _fence(language: str, text: str) -> str:
    """Writes a code block whose fence is longer than any in the text."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" and {names[-1]}" if names else ""
