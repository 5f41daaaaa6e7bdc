"""Hooks of an extension: what a composed output may have beside towers over one merged language model.

``extensions.py`` lists all extensions. Each looks at what has been decided so far (a ``Draft``) and answers with an
``Addition``: tensors, fields of the configuration, files, rows of the record. Blueprint, writers, records and reports
go through the additions and know no extension by name. The network's side is ``modeling/network/extension.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcompose.errors import CompositionError

if TYPE_CHECKING:
    from mcompose.checkpoint import Checkpoint, StagedOutput
    from mcompose.compose.sources import SourceSet
    from mcompose.compose.towers import OutputTower
    from mcompose.ledger import FileRow, SourceRow
    from mcompose.merge import Contribution, Dropped, SourceParts, TensorJob
    from mcompose.recipe import LoadedRecipe, Recipe

__all__ = ["Addition", "Draft", "Extension"]


@dataclass(frozen=True)
class Draft:
    """What has been decided of an output before its extensions are asked.

    Args:
        loaded: The recipe.
        sources: Its opened sources.
        composed: Whether the output has the composed format; no other holds what extensions add.
        towers: The towers of a composed output.
        table: The token embeddings of the base, or of the source whose tokenizer is kept.
        language: Jobs of the shared language model, as the extensions before have left them.
        weights: Whether weights will be read afterwards.
    """

    loaded: LoadedRecipe
    sources: SourceSet
    composed: bool
    towers: tuple[OutputTower, ...]
    table: Contribution
    language: tuple[TensorJob, ...]
    weights: bool = True

    @property
    def recipe(self) -> Recipe:
        """What the recipe says."""
        return self.loaded.recipe


@dataclass(frozen=True)
class Addition:
    """What one extension adds to an output; every hook adds nothing unless a subclass says so.

    Args:
        jobs: Its tensors, behind those of the language model and the towers.
        dropped: Tensors of its sources that no output holds.
        language: Jobs of the language model as they become; None where they stay.
        towers: Towers that it puts together, before those of the sources.
    """

    jobs: tuple[TensorJob, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    language: tuple[TensorJob, ...] | None = None
    towers: tuple[OutputTower, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences for the user."""
        return ()

    # The network

    def config_fields(self, tokenizer: Any) -> dict[str, Any]:
        """Fields of the network's configuration.

        Args:
            tokenizer: The output's, with its placeholders; new tokens are added to it here.
        """
        return {}

    @property
    def checked(self) -> tuple[str, ...]:
        """Prefixes of tensor names that are compared with the network's own before anything is written."""
        return ()

    def misfit(self, name: str, made: object, held: object) -> CompositionError:
        """Returns the error about a tensor with one of these prefixes that does not fit the network.

        Args:
            name: The tensor.
            made: Its planned shape, or "not".
            held: Its shape in the network, or "not".
        """
        return CompositionError(f"'{name}' is {made} among the planned tensors, and {held} in the network.")

    @property
    def outside(self) -> tuple[str, ...]:
        """Prefixes of tensor names that the network has and the checkpoint leaves elsewhere."""
        return ()

    # Files

    def processor_fields(self) -> dict[str, Any]:
        """Returns what the processor is made with."""
        return {}

    def processor_folders(self) -> dict[str, Path]:
        """Returns the name of each processor that it brings, and the folder of its files."""
        return {}

    def write_processors(self, folder: Path) -> None:
        """Writes the processors of towers that come from no source.

        Args:
            folder: The unfinished output.
        """

    def check_processors(self, folder: Path) -> None:
        """Loads the processors out of the written output, so that one that cannot be loaded is reported now."""

    def write_files(self, staged: StagedOutput) -> None:
        """Copies files that lie beside the tensors."""

    # Record and report

    def checkpoints(self) -> dict[str, Checkpoint]:
        """Returns the name of each checkpoint that it reads beside the sources."""
        return {}

    def commits(self) -> dict[str, str]:
        """Returns the commit of each of them, as ``resolve`` names it."""
        return {f"expert:{name}": checkpoint.commit or "" for name, checkpoint in self.checkpoints().items()}

    def source_rows(self) -> tuple[SourceRow, ...]:
        """Rows of the ledger about these checkpoints."""
        return ()

    def file_rows(self) -> tuple[FileRow, ...]:
        """Rows of the ledger about files beside the tensors."""
        return ()

    def report(self) -> dict[str, Any]:
        """Returns what ``mcompose plan --json`` prints of it."""
        return {}

    def report_lines(self) -> tuple[tuple[str, str], ...]:
        """Title and text of each line of ``mcompose plan``."""
        return ()


class Extension:
    """One extension; stateless."""

    def needs_composed(self, recipe: Recipe) -> bool:
        """Returns whether a recipe asks for it, so that the output has to be composed."""
        return False

    def check_source(self, source: SourceParts) -> None:
        """Refuses a source that it cannot work with.

        Raises:
            CompositionError: Naming the source.
        """

    def plan(self, draft: Draft) -> Addition:
        """Decides from headers what it adds; an empty ``Addition`` of its own kind when nothing.

        Args:
            draft: What has been decided so far.

        Raises:
            CompositionError: It cannot be added.
        """
        return Addition()
