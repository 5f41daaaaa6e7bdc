"""What ``config.json`` says about soft mixtures of low-rank experts. Needs no torch.

``ComposedConfig.adapters`` maps the name of a set to its entry::

    {"mv": {"modalities": ["image", "video"], "experts": 16, "rank": 4, "alpha": 4.0, "mode": "token",
            "normalise": "l2", "targets": ["q_proj", "down_proj"], "layers": [0, 11], "on": "language"}}

``modalities`` null stands for all tokens, ``targets`` null for every linear, ``layers`` null for every layer. ``on`` is
``language`` or ``encoder:<tower>``. Beside a linear named ``...q_proj`` the tensors of a set are
``...q_proj.adapters.<set>.down`` (experts x rank, in), ``.up`` (experts x rank, out), ``.router`` (experts, in) and,
for ``l2``, ``.scale``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ..configuration.extension import ConfigExtension
from ..families import MODALITIES

__all__ = ["ADAPTER_MODES", "NORMALISATIONS", "AdapterFields"]

ADAPTER_MODES = ("token", "prefix", "causal", "slot", "merged")
NORMALISATIONS = ("l2", "rms", "none")
_KEYS = ("modalities", "experts", "rank", "alpha", "mode", "normalise", "targets", "layers", "on")


class AdapterFields(ConfigExtension):
    """The field of adapters."""

    fields: ClassVar[Mapping[str, Any]] = {"adapters": {}}

    def check(self, config: Any) -> None:
        """Refuses adapters that this composition cannot have.

        Raises:
            ValueError: Naming the set.
        """
        for name, entry in config.adapters.items():
            unknown = [key for key in entry if key not in _KEYS]
            missing = [key for key in ("experts", "rank", "mode") if key not in entry]
            if unknown or missing:
                raise ValueError(
                    f"The adapters {name!r} have unknown or missing settings: {', '.join(unknown + missing)}."
                )
            if entry["mode"] not in ADAPTER_MODES or entry.get("normalise", "l2") not in NORMALISATIONS:
                raise ValueError(f"The adapters {name!r} have an unknown mode or normalisation.")
            if entry["experts"] < 1 or entry["rank"] < 1:
                raise ValueError(f"The adapters {name!r} need at least one expert, of rank 1 or more.")
            if entry["mode"] == "slot" and entry.get("on", "language") == "language":
                raise ValueError(
                    f"The adapters {name!r} have the mode 'slot', which mixes later tokens into earlier ones, and a "
                    "language model that writes from left to right must not see them."
                )
            for modality in entry.get("modalities") or ():
                if modality != "text" and modality not in MODALITIES:
                    raise ValueError(f"The adapters {name!r} name the unknown modality {modality!r}.")
