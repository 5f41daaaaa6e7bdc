"""Loading a source's own processor out of a composed checkpoint, as far as the installed libraries allow.

transformers' video processors need torchvision, and some feature extractors torchaudio; neither is needed for the
other modalities of the same source. So a processor that does not load whole is loaded in parts, and only the modality
whose part is missing is refused, when it is used.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.image_processing_utils import ImageProcessingMixin
from transformers.processing_utils import ProcessorMixin

from ..families import PROCESSOR_PARTS, family_of
from ..points.processing import PointsProcessor
from .frames import FramesProcessor

__all__ = [
    "PROCESSOR_FOLDER",
    "Unavailable",
    "check_part",
    "copy_source_processor",
    "first_sentence",
    "load_native_processor",
    "load_own_processor",
    "processor_settings",
    "stock_only",
    "write_stubs",
]

PROCESSOR_FOLDER = "processors"
_OWN_PROCESSORS = {"PointsProcessor": PointsProcessor, "FramesProcessor": FramesProcessor}
_PART_LOADERS = {
    "tokenizer": AutoTokenizer,
    "image_processor": AutoImageProcessor,
    "feature_extractor": AutoFeatureExtractor,
}
# What a source's folder holds beside its weights that its processor is loaded from.
_SIDECARS = (
    "config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "tekken.json",
    "tokenizer*",
    "vocab*",
    "*.model",
    "chat_template*",
)


class Unavailable:
    """Stands for a processor that the installed libraries cannot load.

    Args:
        reason: What is missing.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason


def load_native_processor(path: Any, name: str, *, model_type: str, **hub: Any) -> Any:
    """Loads the processor of one native source.

    Args:
        path: The composed checkpoint: a folder or a repository id.
        name: The source's name.
        model_type: The source's model type.
        **hub: ``revision``, ``cache_dir``, ``token``, ``local_files_only`` and their kind.

    Returns:
        The processor, with None for parts that need a missing library; ``Unavailable`` when nothing loads.
    """
    return _loaded(path, {**hub, "subfolder": f"{PROCESSOR_FOLDER}/{name}"}, model_type)


def stock_only(where: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a load with the code of strangers switched off, so that nobody is asked about it.

    Args:
        where: ``subfolder``, ``revision`` and their kind.
    """
    return {**where, "trust_remote_code": False}


def load_own_processor(folder: Path, *, model_type: str) -> Any:
    """Loads the processor out of a source's own folder, as :func:`load_native_processor` does.

    Args:
        folder: The folder.
        model_type: The source's model type.
    """
    return _loaded(folder, {}, model_type)


def _loaded(path: Any, where: dict[str, Any], model_type: str) -> Any:
    own = _OWN_PROCESSORS.get(str(processor_settings(path, where).get("processor_class")))
    if own is not None:
        return own.from_pretrained(path, **where)
    if family_of(model_type).chunks is not None:
        # Only its features are used, and its tokenizer may need a library of its own (mistral-common).
        return AutoFeatureExtractor.from_pretrained(path, **stock_only(where))
    try:
        return AutoProcessor.from_pretrained(path, **stock_only(where))
    except (ImportError, ValueError) as error:
        # A video processor that falls back on the image processor's file says it as a ValueError.
        if isinstance(error, ValueError) and "to be installed" not in str(error):
            raise
        return _in_parts(path, where, error)


def check_part(processor: Any, modality: str, source: str) -> None:
    """Refuses a modality whose part of the processor could not be loaded.

    Raises:
        ValueError: Naming the source and what is missing.
    """
    if isinstance(processor, Unavailable):
        raise ValueError(f"The processor of source {source!r} cannot be loaded: {processor.reason}")
    missing = getattr(processor, "missing_parts", {})
    for part in PROCESSOR_PARTS.get(modality, ()):
        if part in missing:
            raise ValueError(f"The {modality} processor of source {source!r} cannot be loaded: {missing[part]}")


def copy_source_processor(source: Path, folder: Path, name: str) -> list[Path]:
    """Copies a source checkpoint's processor files into a composed checkpoint, without loading them.

    Args:
        source: The source's own folder.
        folder: The composed checkpoint.
        name: The source's name.

    Returns:
        The files written, sorted.
    """
    target = Path(folder) / PROCESSOR_FOLDER / name
    target.mkdir(parents=True, exist_ok=True)
    found = sorted({path for pattern in _SIDECARS for path in Path(source).glob(pattern) if path.is_file()})
    nested = sorted(path.parent.name for path in Path(source).glob("*/*") if path.name in _SIDECARS[1:3])
    for inner in dict.fromkeys(nested if Path(source).parent.name == PROCESSOR_FOLDER else ()):
        copy_source_processor(Path(source) / inner, folder, f"{name}/{inner}")
    # A config that names code of its own is of no use to anybody without that code.
    found = [path for path in found if path.name != "config.json" or b'"auto_map"' not in path.read_bytes()]
    return [_copied(path, target / path.name) for path in found]


def _copied(path: Path, target: Path) -> Path:
    """Returns a copy that asks nobody to run a source's code: what is needed of it travels with the composition."""
    text = path.read_bytes()
    if path.suffix == ".json" and b'"auto_map"' in text:
        settings = json.loads(text)
        settings.pop("auto_map", None)
        text = (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()
    target.write_bytes(text)
    return target


def write_stubs(folder: Path, model_types: Mapping[str, str]) -> None:
    """Gives each source's processor folder a ``config.json`` with its model type, where it has none.

    A tokenizer asks for that file, and offline it must be there to be found missing elsewhere.

    Args:
        folder: The composed checkpoint.
        model_types: Source name -> model type.
    """
    for name, model_type in model_types.items():
        path = folder / PROCESSOR_FOLDER / name / "config.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"model_type": model_type}) + "\n", encoding="utf-8")


def _in_parts(path: Any, where: dict[str, Any], error: Exception) -> Any:
    settings = processor_settings(path, where)
    whole = getattr(transformers, str(settings.get("processor_class")), None)
    if whole is None:
        return Unavailable(first_sentence(error))
    parts: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for attribute in whole.get_attributes():
        loader = _PART_LOADERS.get(attribute)
        try:
            parts[attribute] = loader.from_pretrained(path, **stock_only(where)) if loader is not None else None
        except ImportError as reason:
            parts[attribute], missing[attribute] = None, first_sentence(reason)
        if loader is None:
            missing[attribute] = first_sentence(error)
    known = set(inspect.signature(whole.__init__).parameters)
    own = {key: value for key, value in settings.items() if key in known and key not in parts}
    try:
        made = type(whole.__name__, (_Lenient, whole), {})(**parts, **own)
    except ImportError as reason:
        return Unavailable(first_sentence(reason))
    made.missing_parts = missing
    return made


def processor_settings(path: Any, where: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of the processor in a folder or repository, with its class where they name one."""
    settings, _ = ProcessorMixin.get_processor_dict(path, **where)
    if "processor_class" in settings:
        return settings
    # Older folders keep everything in preprocessor_config.json.
    for mixin, reader in (
        (ImageProcessingMixin, "get_image_processor_dict"),
        (FeatureExtractionMixin, "get_feature_extractor_dict"),
    ):
        older, _ = getattr(mixin, reader)(path, **where)
        if "processor_class" in older:
            return {**settings, "processor_class": older["processor_class"]}
    return settings


def first_sentence(error: BaseException) -> str:
    """Quotes the first sentence of a library's error, without its full stop."""
    return " ".join(str(error).split(". ")[0].split())


class _Lenient:
    """Lets a processor be built without some of its parts."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """Accepts None where a part is missing."""
        if argument is None:
            return type(None)
        return super().check_argument_for_proper_class(argument_name, argument)  # pyright: ignore
