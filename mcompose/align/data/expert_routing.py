"""Which expert each medium of a sample goes to in training, and what its router is to learn: from the data's domain.

An expert has a domain, a dataset has one, and where they are equal the dataset's media go to that expert. A domain
without an expert is the router's class 0 (none); what has no domain teaches it nothing. A domain of another modality's
experts says nothing about a medium either.

Paper: Peng et al. 2024, Chimera, arXiv:2412.05983, sections 3.1 and 4.4: labels are the datasets', training follows
them. Differs: routing by prediction and by labels with noise are offered beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mcompose.align.data.masks import mask_generator
from mcompose.align.data.samples import Sample
from mcompose.errors import RequestError, UnknownNameError, nearest_name, slip_of
from mcompose.recipe import RouterTraining

__all__ = ["UNKNOWN", "ExpertTable", "Routing"]

UNKNOWN: Final = -100
"""Label of an item that the router learns nothing from."""
_PURPOSE = "routing"


@dataclass(frozen=True)
class ExpertTable:
    """The experts and routers of a checkpoint.

    Args:
        experts: Name to (modality, domain), in the order of the config.
        classes: Modality to the classes of its router; the first is none.
        tiles: Modality to the tile that its router reads: ``first``, ``last`` or ``mean``.
    """

    experts: Mapping[str, tuple[str, str]]
    classes: Mapping[str, tuple[str, ...]]
    tiles: Mapping[str, str]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ExpertTable | None:
        """Returns the table of a checkpoint's config; None when it has no experts."""
        experts = config.get("experts") or {}
        routers = config.get("routers") or {}
        if not experts:
            return None
        return cls(
            {name: (entry["modality"], entry["domain"]) for name, entry in experts.items()},
            {modality: tuple(entry["classes"]) for modality, entry in routers.items()},
            {modality: entry.get("tile", "mean") for modality, entry in routers.items()},
        )

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those with experts, in order."""
        return tuple(dict.fromkeys(modality for modality, _ in self.experts.values()))

    @property
    def domains(self) -> tuple[str, ...]:
        """Those with experts, in order."""
        return tuple(dict.fromkeys(domain for _, domain in self.experts.values()))

    def expert_of(self, domain: str | None, modality: str) -> str | None:
        """Returns the expert that a modality's media of a domain go to.

        Args:
            domain: As the data name it; an expert's own name will do as well.
            modality: Modality of the media.

        Raises:
            RequestError: Several experts have this domain.
        """
        if self.experts.get(domain or "", ("", ""))[0] == modality:
            return domain
        found = [name for name, entry in self.experts.items() if entry == (modality, domain)]
        if len(found) > 1:
            raise RequestError(
                f"The experts {', '.join(found)} have the same domain '{domain}'.",
                hint="Give the data the name of one of them as 'domain'.",
            )
        return found[0] if found else None

    def is_known(self, domain: str) -> bool:
        """Returns whether any expert has a domain."""
        return any(self.expert_of(domain, modality) for modality in self.modalities)


@dataclass(frozen=True)
class Routing:
    """Routes and labels of a stage.

    Args:
        table: The checkpoint's experts.
        spec: The recipe's.
        seed: The stage's.
        labelled: Whether batches carry ``router_labels``: only a router that is trained needs them.
        fitted: Whether the router is fitted by itself.
    """

    table: ExpertTable
    spec: RouterTraining
    seed: int
    labelled: bool
    fitted: bool = False

    def check(self, domains: Sequence[str]) -> None:
        """Looks at the domains that the data name.

        Raises:
            UnknownNameError: The recipe names a domain that they do not have.
            RequestError: One fits several experts, or the router would learn from nothing.
        """
        for name in self.spec.general or ():
            if name not in domains:
                raise UnknownNameError(
                    f"'router.general' names the domain '{name}', which no data have.", hint=nearest_name(name, domains)
                )
        known = [domain for domain in domains if self.table.is_known(domain)]
        others = [domain for domain in domains if domain not in known]
        for domain in domains:
            near = None if domain in known else slip_of(domain, [*self.table.experts, *self.table.domains])
            if near and domain not in (self.spec.general or ()):
                raise RequestError(
                    f"The data's domain '{domain}' is not an expert's, and looks like '{near}'.",
                    hint=f"Write '{near}'; or, if it is to go without an expert, list all such domains: "
                    f"'router.general: [{', '.join(others)}]'.",
                )
        if not self.table.classes and (self.labelled or self.fitted or self.spec.routing == "predicted"):
            raise RequestError(
                "'router' has nothing to train or to ask: this checkpoint has experts and no router.",
                hint="Leave 'router' out, and compose with a router.",
            )
        if (self.labelled or self.fitted) and not known:
            raise RequestError(
                f"No data of this stage belong to a domain of the experts ({', '.join(self.table.domains)}).",
                hint="Write 'domain: ...' beside the 'path' of a dataset.",
            )

    def label(self, domain: str | None, modality: str) -> int:
        """Class of a medium for its router, or ``UNKNOWN``.

        Args:
            domain: Domain of its sample.
            modality: Modality of the medium.
        """
        expert = self.table.expert_of(domain, modality)
        if expert is not None:
            return self.table.classes[modality].index(expert) if modality in self.table.classes else UNKNOWN
        if domain is None or self.table.is_known(domain):
            return UNKNOWN
        return 0 if self.spec.general is None or domain in self.spec.general else UNKNOWN

    def labels(self, samples: Sequence[Sample]) -> dict[str, list[int]]:
        """Modality to the class of every medium of a batch, in reading order; modalities with a router only."""
        found: dict[str, list[int]] = {modality: [] for modality in self.table.classes}
        for sample in samples:
            media = sample.media()
            for modality, labels in found.items():
                labels += [self.label(sample.domain, modality)] * len(media.get(modality, []))
        return found

    def experts(self, samples: Sequence[Sample], positions: Sequence[int] = ()) -> Any:
        """Returns what the processor is told about a batch.

        Args:
            samples: Samples of the batch.
            positions: Of the samples in the stage, by which noise is addressed; without them there is no noise.

        Returns:
            ``auto``, or expert (None for none) of every medium in reading order: a list where one modality has
            experts, else modality to list.
        """
        if self.spec.routing == "predicted":
            return "auto"
        found: dict[str, list[str | None]] = {modality: [] for modality in self.table.modalities}
        for number, sample in enumerate(samples):
            for modality, routes in self._routes(sample, positions[number] if positions else None).items():
                found[modality] += routes
        return next(iter(found.values())) if len(found) == 1 else found

    def _routes(self, sample: Sample, position: int | None) -> dict[str, list[str | None]]:
        media, share = sample.media(), self.spec.noise_share
        generator = None
        if share and position is not None:
            generator = mask_generator(self.seed, position, purpose=_PURPOSE)
        found: dict[str, list[str | None]] = {}
        for modality in self.table.modalities:
            route = self.table.expert_of(sample.domain, modality)
            count = len(media.get(modality, []))
            if generator is None or (route is None and self.label(sample.domain, modality) == UNKNOWN):
                found[modality] = [route] * count
                continue
            known: list[str | None] = [None, *(name for name, (m, _) in self.table.experts.items() if m == modality)]
            others = [name for name in known if name != route]
            drawn = [(generator.random() < share, int(generator.integers(len(others)))) for _ in range(count)]
            found[modality] = [others[which] if changed else route for changed, which in drawn]
        return found
