"""What commands report, as values that print themselves as text or as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mcompose.ledger import human_bytes

if TYPE_CHECKING:
    from mcompose.compose import Blueprint, ComposeResult

__all__ = ["InspectReport", "MergeReport", "PlanReport", "SourceReport"]


@dataclass(frozen=True)
class SourceReport:
    """The parts of one checkpoint.

    Args:
        source: Reference.
        model_type: transformers' model type.
        architecture: transformers' class.
        language: Model type of its language model.
        num_layers: Decoder layers.
        hidden_size: Width of the language model.
        vocabulary_rows: Rows of the token embedding.
        modalities: Modalities that it takes beside text.
        placeholders: Modality to the id of its placeholder token.
        tied: Whether the head is the embedding.
        licence: Licence that its model card states.
        refusal: Why it cannot be composed; empty when it can.
        composes: What was compared of its family in composed outputs; empty for text models.
        warnings: Sentences for the user.
        rows: One row a part: name, tensors, parameters, dtypes.
    """

    source: str
    model_type: str
    architecture: str
    language: str
    num_layers: int
    hidden_size: int
    vocabulary_rows: int
    modalities: tuple[str, ...]
    placeholders: dict[str, int]
    tied: bool
    licence: str
    refusal: str
    composes: str
    warnings: tuple[str, ...]
    rows: tuple[tuple[str, int, int, str], ...]

    def to_text(self) -> str:
        """Returns the report as text; the caller prints the table of parts."""
        takes = ", ".join(self.modalities) or "text only"
        ids = ", ".join(f"<{modality}> {index}" for modality, index in self.placeholders.items())
        shape = f"{self.num_layers} layers, width {self.hidden_size}, {self.vocabulary_rows:,} vocabulary rows"
        lines = [
            f"{self.source}: {self.architecture} ({self.model_type})",
            f"  language model  {self.language}: {shape}" + (", tied head" if self.tied else ""),
            f"  takes           {takes}" + (f"; placeholders {ids}" if ids else ""),
        ]
        if self.licence:
            lines.append(f"  licence         {self.licence}")
        if self.composes:
            lines.append(f"  composes        {self.composes}")
        if self.refusal:
            lines.append(f"  refused         {self.refusal}")
        return "\n".join([*lines, *(f"  warning         {text}" for text in self.warnings)])


@dataclass(frozen=True)
class InspectReport:
    """What checkpoints are made of, and whether they can be composed.

    Args:
        sources: One report a checkpoint.
        reasons: Why they cannot be composed together; empty when they can, or when there is only one.
    """

    sources: tuple[SourceReport, ...]
    reasons: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """Returns one sentence, or one line per reason."""
        if not self.reasons:
            return "These can be composed, judging by their headers; `mcompose merge` also measures the weights."
        return "These cannot be composed:\n" + "\n".join(f"- {reason}" for reason in self.reasons)

    def to_dict(self) -> dict[str, Any]:
        """Returns what ``--json`` prints."""
        sources = [{**asdict(source), "rows": None, "parts": _parts(source)} for source in self.sources]
        for source in sources:
            del source["rows"]
        return {"sources": sources, "composable": not self.reasons, "reasons": list(self.reasons)}


def _parts(source: SourceReport) -> list[dict[str, Any]]:
    return [
        {"part": part, "tensors": tensors, "parameters": parameters, "dtype": dtype}
        for part, tensors, parameters, dtype in source.rows
    ]


@dataclass(frozen=True)
class PlanReport:
    """What a merge would do.

    Args:
        name: Name of the recipe.
        output: Folder that it would write; empty when the recipe names none.
        method: Merge method.
        blueprint: The decisions.
    """

    name: str
    output: str
    method: str
    blueprint: Blueprint

    def to_text(self) -> str:
        """Returns the report as text."""
        plan, sources = self.blueprint.plan, self.blueprint.sources
        brings = ", ".join(f"{modality} from '{name}'" for modality, name in sources.modalities.items())
        counts = ", ".join(f"{count} {action}" for action, count in plan.to_dict()["actions"].items())
        shards, named = plan.layout.shards, len(sources.sources)
        lines = [
            f"{self.name}: {self.blueprint.format} output, {self.method} over {named} source{'s' * (named != 1)}",
            f"  brings       {brings or 'text only'}",
            *(f"  {title:12} {text}" for each in self.blueprint.additions for title, text in each.report_lines()),
            f"  tensors      {counts}, {len(plan.dropped)} dropped",
            f"  reads        {human_bytes(plan.bytes_to_read)}",
            f"  writes       {human_bytes(plan.bytes_to_write)} in {len(shards)} file{'s' * (len(shards) > 1)}",
            f"  peak memory  about {human_bytes(plan.peak_memory)} with {plan.threads} threads",
            f"  output       {self.output or 'give one with -o DIR'}",
        ]
        return "\n".join([*lines, *(f"  warning      {text}" for text in self.blueprint.warnings)])

    def to_dict(self) -> dict[str, Any]:
        """Returns what ``--json`` prints."""
        sources = [
            {
                "name": source.name,
                "ref": str(source.checkpoint.ref),
                "commit": source.checkpoint.commit,
                "model_type": source.anatomy.model_type,
            }
            for source in self.blueprint.sources.everything
        ]
        return {
            "name": self.name,
            "method": self.method,
            "format": self.blueprint.format,
            "output": self.output,
            "modalities": self.blueprint.sources.modalities,
            "sources": sources,
            **{key: value for each in self.blueprint.additions for key, value in each.report().items()},
            "files": {shard.filename: shard.size for shard in self.blueprint.plan.layout.shards},
            **self.blueprint.plan.to_dict(),
            "warnings": list(self.blueprint.warnings),
        }


@dataclass(frozen=True)
class MergeReport:
    """What a merge has done.

    Args:
        result: The output.
        seconds: Wall time.
    """

    result: ComposeResult
    seconds: float

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences for the user."""
        return self.result.warnings

    def profile(self) -> dict[str, Any]:
        """Returns a timing breakdown: wall seconds by phase, and for the weights the threads' seconds by stage."""
        rounded = {name: round(seconds, 3) for name, seconds in self.result.phases.items()}
        stages = {name: round(seconds, 3) for name, seconds in self.result.seconds.items()}
        return {"phases": rounded, "threads": stages}

    def profile_text(self) -> str:
        """Returns the timing breakdown as a table."""
        profile = self.profile()
        lines = [f"  {name:14} {seconds:8.3f} s" for name, seconds in profile["phases"].items()]
        stages = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in profile["threads"].items())
        return "\n".join([*lines, f"  of the weights, added up over the threads: {stages}"])

    def to_text(self) -> str:
        """Returns the report as text, in two lines."""
        blueprint = self.result.blueprint
        written = human_bytes(blueprint.plan.bytes_to_write)
        resumed = f", {self.result.resumed} tensors from an earlier run" if self.result.resumed else ""
        takes = ", ".join(self.result.ledger.modalities) or "text only"
        return (
            f"{self.result.folder}\n"
            f"  {blueprint.format} ({takes}), {len(blueprint.plan.jobs)} tensors, {written} in "
            f"{self.seconds:.1f} s{resumed}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns what ``--json`` prints."""
        blueprint = self.result.blueprint
        return {
            "output": str(self.result.folder),
            "format": blueprint.format,
            "modalities": list(self.result.ledger.modalities),
            "tensors": len(blueprint.plan.jobs),
            "dropped": len(blueprint.plan.dropped),
            "bytes_read": blueprint.plan.bytes_to_read,
            "bytes_written": blueprint.plan.bytes_to_write,
            "resumed_tensors": self.result.resumed,
            "seconds": round(self.seconds, 3),
            "warnings": list(self.warnings),
        }
