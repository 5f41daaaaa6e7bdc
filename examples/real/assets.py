"""What the example takes beside the lab's assets: drawn shapes with questions, and spoken digits."""

from pathlib import Path

from mcompose.lab import smol_assets
from mcompose.lab.smol_assets import Debian, Wheel

__all__ = ["ASSETS", "fetch", "fetch_sounds"]

ASSETS: dict[str, Wheel | Debian] = smol_assets.ASSETS | {
    "shapes": Wheel(
        "easy-vqa==1.0",
        "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
        "easy_vqa/data/train/questions.json",
    ),
    "sounds": Debian(
        "asterisk-core-sounds-en-wav",
        "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
        "usr/share/asterisk/sounds/en_US_f_Allison",
    ),
}


def fetch(name: str, folder: Path) -> Path:
    """Downloads and unpacks one package, once; see ``mcompose.lab.smol_assets.fetch``."""
    return smol_assets.fetch(name, folder, assets=ASSETS)


def fetch_sounds(folder: Path) -> Path:
    """The folder that holds ``digits/0.wav``."""
    return fetch("sounds", folder)
