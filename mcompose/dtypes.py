"""The element types of the safetensors format: their sizes, and their names in numpy, torch and recipes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["DTYPES", "FLOAT_CODES", "FLOAT_NAMES", "TORCH_NAMES", "Dtype"]


@dataclass(frozen=True)
class Dtype:
    """One element type.

    Args:
        bits: Size of one element, in bits.
        raw: numpy type that holds its bytes unchanged; ``u1`` where numpy does not have the type.
        name: Name in torch, ``config.json`` and recipes; empty for types that mcompose only copies.
        mergeable: Whether mcompose does arithmetic on it.
    """

    bits: int
    raw: str = "u1"
    name: str = ""
    mergeable: bool = False


DTYPES: Final = {
    "BOOL": Dtype(8, "?", "bool"),
    "U8": Dtype(8, "u1", "uint8"),
    "I8": Dtype(8, "i1", "int8"),
    "U16": Dtype(16, "<u2"),
    "I16": Dtype(16, "<i2", "int16"),
    "U32": Dtype(32, "<u4"),
    "I32": Dtype(32, "<i4", "int32"),
    "U64": Dtype(64, "<u8"),
    "I64": Dtype(64, "<i8", "int64"),
    "BF16": Dtype(16, "<u2", "bfloat16", mergeable=True),
    "F16": Dtype(16, "<f2", "float16", mergeable=True),
    "F32": Dtype(32, "<f4", "float32", mergeable=True),
    "F64": Dtype(64, "<f8", "float64", mergeable=True),
    "C64": Dtype(64, "<c8"),
    "F8_E4M3": Dtype(8),
    "F8_E5M2": Dtype(8),
    "F8_E8M0": Dtype(8),
    "F8_E4M3FNUZ": Dtype(8),
    "F8_E5M2FNUZ": Dtype(8),
    "F6_E2M3": Dtype(6),
    "F6_E3M2": Dtype(6),
    "F4": Dtype(4),
}
"""safetensors code to type, for every type of the format."""

TORCH_NAMES: Final = {code: dtype.name for code, dtype in DTYPES.items() if dtype.name}
"""Code to torch's name, for the types that mcompose loads as torch tensors."""

FLOAT_NAMES: Final = {code: dtype.name for code, dtype in DTYPES.items() if dtype.mergeable}
"""Code to name, for the types that mcompose does arithmetic on; all others are copied unchanged."""

FLOAT_CODES: Final = {name: code for code, name in FLOAT_NAMES.items()}
"""Name to code, for the types that mcompose does arithmetic on."""
