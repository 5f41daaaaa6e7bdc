"""Cache of transformers' answers about configs that are not in the generated table, in the user's cache folder.

Building a meta model takes a second or two. Its description is plain data, and depends only on the config and the
versions of transformers and mcompose. A cache folder that cannot be written is ignored.
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
    """Returns family and settings of a config, from the cache or from transformers' meta model.

    Returns:
        Family and settings; None when the installed transformers does not know the type.

    Raises:
        AnatomyError: transformers knows the type but cannot build it, or the model does not generate text.
    """
    file = cache_folder("anatomy") / _file_name(config)
    cached = _load(file)
    if cached is not None:
        return cached
    from mcompose.anatomy import meta  # noqa: PLC0415 - torch and transformers, only for unlisted types

    if not meta.is_known(config["model_type"]):
        return None
    built = meta.config_of(config)
    answer = meta.describe(built), meta.settings_of(built)
    _store(file, answer)
    return answer


def _file_name(config: Mapping[str, Any]) -> str:
    from importlib.metadata import version as version_of  # noqa: PLC0415 - slow, and not needed for known families

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
