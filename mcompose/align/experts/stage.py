"""What a stage does about its checkpoint's experts, found out from config and data before a model is loaded.

::

    table      experts, routers                       from config.json
    routing    domain of a sample -> expert, label    goes into the collator
    weights    of the router's classes                goes into its loss
    gscm       which tokens are hidden, and when      goes behind the collator

A checkpoint without experts has none of this, and its stages run as ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mcompose.align.data.expert_routing import ExpertTable, Routing
from mcompose.align.data.tiles import tile_size
from mcompose.align.experts.gscm import Gscm, TileForm, ratio_schedule
from mcompose.align.experts.router_loss import class_weights
from mcompose.align.stage import StepPlan
from mcompose.errors import RequestError, UnknownNameError, nearest_name
from mcompose.recipe import Masking, RouterTraining, Stage, part_role

__all__ = ["ExpertStage", "open_experts"]


@dataclass(frozen=True)
class ExpertStage:
    """What a stage does about experts.

    Args:
        stage: The recipe's stage.
        table: The checkpoint's experts; None without.
        routing: Routing of its data.
        processor: The checkpoint's.
        domains: That the data name.
        counts: Domain to modality to items of an epoch; empty for streams.
    """

    stage: Stage
    table: ExpertTable | None
    routing: Routing | None
    processor: Any
    domains: tuple[str, ...]
    counts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def router(self) -> RouterTraining:
        """The recipe's settings, or the defaults."""
        return self.stage.router or RouterTraining()

    @property
    def trains_router(self) -> bool:
        """Whether the stage's loss has a router's in it."""
        return self.routing is not None and self.routing.labelled

    @property
    def predicts(self) -> bool:
        """Whether the router itself chooses experts in training."""
        return self.routing is not None and self.routing.spec.routing == "predicted"

    def weights(self) -> dict[str, list[float]]:
        """Modality to the weights of its router's classes; see ``router_loss.class_weights``."""
        if self.table is None or self.routing is None:
            return {}
        counts = self._items_of_classes(self.table, self.routing)
        return class_weights(self.router.class_weights, self.table.classes, counts if self.counts else {})

    def _items_of_classes(self, table: ExpertTable, routing: Routing) -> dict[str, list[float]]:
        """Modality to the items of an epoch that teach each class of its router."""
        counts: dict[str, list[float]] = {}
        for modality, classes in table.classes.items():
            counts[modality] = [0.0] * len(classes)
            for domain, items in self.counts.items():
                label = routing.label(domain, modality)
                if label >= 0:
                    counts[modality][label] += items.get(modality, 0.0)
        return counts

    def notices(self) -> list[str]:
        """Sentences about classes of a trained router that no data of the stage have."""
        if self.table is None or self.routing is None or not self.counts:
            return []
        if not (self.routing.labelled or self.routing.fitted):
            return []
        found = []
        for modality, counts in self._items_of_classes(self.table, self.routing).items():
            missing = [name for name, count in zip(self.table.classes[modality], counts, strict=True) if not count]
            if missing:
                found.append(
                    f"The {modality} router learns nothing of {', '.join(missing)}: no data of this stage belong "
                    "there. ('none' is learnt from media of a domain without an expert.)"
                )
        return found

    def mask(self, plan: StepPlan) -> Gscm | None:
        """Returns the stage's masking; None where it has none.

        Args:
            plan: Steps of the stage.

        Raises:
            UnknownNameError: It names a domain that the data do not have.
            RequestError: It could hide nothing.
        """
        spec = self.stage.gscm
        if spec is None or spec.ratio == 0:
            return None
        if self.table is None:
            raise RequestError(
                "'gscm' hides tokens in favour of experts, and this checkpoint has none.", hint="Leave 'gscm' out."
            )
        rows = self._maskable(spec, self.table)
        if not any(rows):
            known = ", ".join(self.table.domains)
            raise RequestError(
                f"'gscm' would hide nothing: no data of this stage belong to a domain of the experts ({known}).",
                hint="Write 'domain: ...' beside the 'path' of a dataset, or name 'gscm.domains'.",
            )
        forms = {index: self._form(spec, modality) for modality, index in self._placeholders().items()}
        ratio = ratio_schedule(spec, steps=plan.steps, batch=plan.batch)
        tiles = {i: form for i, form in forms.items() if form}
        served = spec.domains is None and not self.predicts  # what the router itself chooses is known later
        return Gscm(spec, self.stage.seed, ratio, rows, tiles, served)

    def _placeholders(self) -> dict[str, int]:
        assert self.table is not None
        return {modality: self.processor.ids[modality] for modality in self.table.modalities}

    def _maskable(self, spec: Masking, table: ExpertTable) -> list[tuple[int, ...]]:
        for name in spec.domains or ():
            if name not in self.domains:
                raise UnknownNameError(
                    f"'gscm.domains' names '{name}', which no data have.", hint=nearest_name(name, self.domains)
                )
        ids, rows = self._placeholders(), []
        for domain in self.domains:
            served = [modality for modality in ids if table.expert_of(domain, modality)]
            if spec.domains is not None:
                served = (served or list(ids)) if domain in spec.domains else []
            rows.append(tuple(ids[modality] for modality in served))
        return rows

    def _form(self, spec: Masking, modality: str) -> TileForm | None:
        """Returns how the tokens of a modality fall into tiles, where that matters."""
        if modality != "image" or (spec.unit != "tile" and spec.include_thumbnail):
            return None
        assert self.table is not None
        source = self.processor.served_by(modality)
        images = getattr(self.processor.processors.get(source), "image_processor", None)
        if hasattr(images, "image_grid_pinpoints"):
            raise RequestError(
                f"The tiles of '{source}' are woven into one grid, so that no tile can be hidden by itself.",
                hint="Leave 'unit: tile' and 'include_thumbnail: false' out.",
            )
        thumbnail = self.table.tiles.get(modality, "mean")
        return TileForm(tile_size(self.processor, source=source), "none" if thumbnail == "mean" else thumbnail)


def open_experts(stage: Stage, config: Mapping[str, Any], *, processor: Any, mixture: Any) -> ExpertStage:
    """Finds out what a stage does about experts.

    Args:
        stage: The recipe's stage.
        config: Config of the checkpoint.
        processor: Processor of the checkpoint.
        mixture: The stage's data.

    Returns:
        All of it, checked against the domains of the data.

    Raises:
        RequestError: The stage asks for what the checkpoint or the data do not have.
    """
    table, domains = ExpertTable.of(config), tuple(mixture.domains)
    trained = any(part_role(name)[0] == "router" for name in (*stage.train, *stage.lora))
    if table is None:
        if stage.router is not None:
            raise RequestError(
                "'router' has nothing to train: this checkpoint has no experts.", hint="Leave 'router' out."
            )
        return ExpertStage(stage, None, None, processor, domains)
    spec = stage.router or RouterTraining()
    routing = Routing(table, spec, stage.seed, labelled=trained, fitted=stage.fits_router)
    routing.check(domains)
    if stage.fits_router and not hasattr(mixture, "samples"):
        raise RequestError("A router cannot be fitted on a stream.", hint="Leave 'streaming' out, or 'fit: separate'.")
    counts = mixture.items_of_domains() if hasattr(mixture, "items_of_domains") else {}
    return ExpertStage(stage, table, routing, processor, domains, counts)
