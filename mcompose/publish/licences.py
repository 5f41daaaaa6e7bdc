"""Which licence a model made of several may state: the common one, or ``other`` with every one named.

This is bookkeeping, not legal advice: what the sources state is repeated, known duties are pointed at, and the
card tells the reader to check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mcompose.ledger import SourceRow

__all__ = ["licence_fields", "licence_remarks"]

_REMARKS: Mapping[str, str] = {
    "llama2": "Llama 2 licence: keep its notice and its acceptable use policy.",
    "llama3": "Llama 3 licences: derived models carry 'Llama' first in their name and show 'Built with Llama'.",
    "llama4": "Llama 4 licence: derived models carry 'Llama' first in their name and show 'Built with Llama'.",
    "gemma": "Gemma terms of use: their restrictions must be passed on with derived models.",
    "cc-by-nc": "Creative Commons NC: no commercial use.",
    "cc-by-sa": "Creative Commons SA: share under the same licence.",
    "gpl": "GPL: copyleft; share under the same licence.",
    "agpl": "AGPL: copyleft; share under the same licence.",
    "openrail": "OpenRAIL: its use restrictions must be passed on with derived models.",
    "bigscience-openrail-m": "OpenRAIL: its use restrictions must be passed on with derived models.",
    "other": "A licence of its own: read it on the source's page.",
}
"""Beginning of a licence identifier to what its text asks of derived models, as far as this table knows."""


def licence_fields(sources: Sequence[SourceRow], *, repo_id: str | None) -> dict[str, str]:
    """Returns the licence fields of a model card.

    Args:
        sources: The sources, base included.
        repo_id: The repository that the card is for; its licence section is linked.

    Returns:
        ``license`` alone when all sources state the same one; otherwise ``license: other`` with a name that lists
        them and, when the repository is known, a link.
    """
    stated = list(dict.fromkeys(source.licence for source in sources))
    if len(stated) == 1 and stated[0] and "," not in stated[0]:
        return {"license": stated[0]}
    names = [name.replace(", ", "-") or "unstated" for name in stated]
    fields = {"license": "other", "license_name": "mixed-" + "-and-".join(names) if names else "unstated"}
    if repo_id:
        fields["license_link"] = f"https://huggingface.co/{repo_id}#licence"
    return fields


def licence_remarks(sources: Sequence[SourceRow]) -> list[str]:
    """Sentences on what the sources' licences ask for.

    Args:
        sources: The sources, base included.

    Returns:
        One sentence per licence that the table knows.
    """
    remarks: dict[str, None] = {}
    for source in sources:
        for licence in source.licence.lower().split(", "):
            known = [prefix for prefix in _REMARKS if licence.startswith(prefix)]
            if known:
                remarks[_REMARKS[max(known, key=len)]] = None
    return list(remarks)
