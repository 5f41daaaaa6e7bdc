"""Reads checkpoints without torch, and writes outputs that appear only when they are complete.

* Reading: ``open_checkpoint`` returns a ``Checkpoint``, whose ``tensors`` give the file and offset of every tensor
  (``reader``, ``weight_files``, ``headers``; ``hub`` and ``snapshot`` for the Hub). ``read_tensor`` and
  ``read_float32`` read values (``codec``, ``files``).
* Adapters: ``open_adapter`` reads a PEFT adapter and matches it to its base (``adapter``, ``adapter_keys``); ``fold``
  adds it to the weights.
* Other files: ``sidecar`` finds tokenizer and processor files, ``graphs`` and ``stored`` the ONNX files of experts.
* Writing: ``plan_layout`` places every tensor (``layout``); ``StagedOutput`` writes into a partial folder and records
  finished tensors in a journal (``staged``, ``folders``, ``journal``, ``digest``); ``parts`` for several runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcompose.checkpoint.adapter import Adapter, open_adapter
from mcompose.checkpoint.codec import decode, encode, raw_dtype, read_float32, read_tensor
from mcompose.checkpoint.digest import TensorDigest, digest_tensor
from mcompose.checkpoint.files import TensorFiles
from mcompose.checkpoint.fold import LowRank
from mcompose.checkpoint.folders import partial_folder, whole_folder
from mcompose.checkpoint.graphs import ExpertFile, open_files
from mcompose.checkpoint.headers import Header, parse_header, read_header, read_json_object
from mcompose.checkpoint.journal import JournalRow
from mcompose.checkpoint.layout import Layout, Place, ShardLayout, plan_layout
from mcompose.checkpoint.parts import Part, PartOutput, discard_parts, gather
from mcompose.checkpoint.reader import Checkpoint, is_tied, open_checkpoint
from mcompose.checkpoint.sidecar import (
    FileDigest,
    code_files,
    copy_file,
    digest_file,
    is_sidecar,
    patch_json,
    read_card,
    sidecar_files,
)
from mcompose.checkpoint.snapshot import HubSnapshot
from mcompose.checkpoint.staged import StagedOutput
from mcompose.checkpoint.stored import plain_path, stored_graphs
from mcompose.checkpoint.tensor import DTYPE_BITS, MERGEABLE_DTYPES, TensorEntry
from mcompose.doors import lazy_names

if TYPE_CHECKING:
    from mcompose.checkpoint.adapter import ADAPTER_FILE
    from mcompose.checkpoint.adapter_keys import PEFT_PREFIX, split_key
    from mcompose.checkpoint.folders import LOCK_NAME, FolderLock
    from mcompose.checkpoint.hub import LOG_IN, hub_errors
    from mcompose.checkpoint.layout import INDEX_FILE
    from mcompose.checkpoint.weight_files import PICKLES

__all__ = [
    "ADAPTER_FILE",
    "DTYPE_BITS",
    "INDEX_FILE",
    "LOCK_NAME",
    "LOG_IN",
    "MERGEABLE_DTYPES",
    "PEFT_PREFIX",
    "PICKLES",
    "Adapter",
    "Checkpoint",
    "ExpertFile",
    "FileDigest",
    "FolderLock",
    "Header",
    "HubSnapshot",
    "JournalRow",
    "Layout",
    "LowRank",
    "Part",
    "PartOutput",
    "Place",
    "ShardLayout",
    "StagedOutput",
    "TensorDigest",
    "TensorEntry",
    "TensorFiles",
    "code_files",
    "copy_file",
    "decode",
    "digest_file",
    "digest_tensor",
    "discard_parts",
    "encode",
    "gather",
    "hub_errors",
    "is_sidecar",
    "is_tied",
    "open_adapter",
    "open_checkpoint",
    "open_files",
    "parse_header",
    "partial_folder",
    "patch_json",
    "plain_path",
    "plan_layout",
    "raw_dtype",
    "read_card",
    "read_float32",
    "read_header",
    "read_json_object",
    "read_tensor",
    "sidecar_files",
    "split_key",
    "stored_graphs",
    "whole_folder",
]

_HOME = {
    "ADAPTER_FILE": "adapter",
    "FolderLock": "folders",
    "INDEX_FILE": "layout",
    "LOCK_NAME": "folders",
    "LOG_IN": "hub",
    "PEFT_PREFIX": "adapter_keys",
    "split_key": "adapter_keys",
    "PICKLES": "weight_files",
    "hub_errors": "hub",
}
"""Names that are loaded on first use, and the file of each: other rooms need them in few places."""


__getattr__ = lazy_names(__name__, _HOME)
