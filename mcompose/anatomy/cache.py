"""What transformers answered about a config that the generated table does not hold, kept in the user's cache folder.

A meta model costs a second or two; the answer is plain data, and depends only on the config, on transformers' version
and on this room's own version. A folder that cannot be written is no reason to fail.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mcompose import __version__
from mcompose.anatomy.family import Family, Renaming
from mcompose.anatomy.settings import Settings
from mcompose.errors import StorageError
from mcompose.on_disk import cache_folder
from mcompose.whole_files import write_bytes

__all__ = ["ask_transformers"]


def ask_transformers(config: Mapping[str, Any]) -> tuple[Family, Settings] | None:
    """Family and settings of a config, from the cache or from transformers' meta model.

    Returns:
        None when the installed transformers does not know the type.

    Raises:
        AnatomyError: transformers knows the type and cannot build it, or it does not answer in text.
    """
    file = cache_folder("anatomy") / _file_name(config)
    kept = _load(file)
    if kept is not None:
        return kept
    from mcompose.anatomy import meta  # noqa: PLC0415 - torch and transformers, only for what no table holds

    if not meta.is_known(config["model_type"]):
        return None
    built = meta.config_of(config)
    answer = meta.describe(built), meta.settings_of(built)
    _store(file, answer)
    return answer


def _file_name(config: Mapping[str, Any]) -> str:
    from importlib.metadata import version as version_of  # noqa: PLC0415 - slow, and known families never ask

    version = version_of("transformers")
    text = json.dumps(config, sort_keys=True, default=str)
    digest = hashlib.sha256(f"{__version__} {version} {text}".encode()).hexdigest()[:16]
    return f"{config['model_type']}-{version}-{digest}.json"


def _load(file: Path) -> tuple[Family, Settings] | None:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        renamings = [Renaming(**step) for step in data["renamings"]]
        return Family.from_json(data["family"], renamings), Settings(**data["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _store(file: Path, answer: tuple[Family, Settings]) -> None:
    family, settings = answer
    renamings = list(dict.fromkeys(family.renamings))
    data = {
        "renamings": [vars(step) for step in renamings],
        "family": family.to_json(renamings),
        "settings": vars(settings),
    }
    with suppress(StorageError):
        write_bytes(file, json.dumps(data, default=str).encode(), shared=True)
