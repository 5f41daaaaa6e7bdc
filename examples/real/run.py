"""Makes two sources with real encoders, composes them, and asks the result.

python -m examples.real.run
"""

from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from transformers import AutoModelForMultimodalLM, AutoProcessor

from examples.real.assets import fetch, fetch_sounds
from examples.real.sources import QUESTION, make_audio_source, make_image_source, read_sound
from mcompose.lab.smol.encoders import dinov2_weights, whisper_weights
from mcompose.lab.smol.parts import export_language
from mcompose.pipeline.write import merge

FOLDER = Path("build/real")


def make_sources(folder: Path) -> dict[str, Path]:
    """Downloads, exports and trains; every part is kept for the next run.

    Returns:
        ``base``, ``sees`` and ``hears`` -> folder.
    """
    assets = folder / "assets"
    language = export_language(fetch("language", assets), folder / "base")
    vision = dinov2_weights(fetch("vision", assets))
    speech = whisper_weights([fetch("whisper-1", assets), fetch("whisper-2", assets)])
    sees = make_image_source(folder / "sees", language=language, vision=vision, shapes=fetch("shapes", assets))
    hears = make_audio_source(folder / "hears", language=language, speech=speech, sounds=fetch_sounds(assets))
    return {"base": language, "sees": sees, "hears": hears}


def write_recipe(folder: Path) -> Path:
    """Writes the recipe of the composition; returns its path."""
    recipe = {
        "schema": 1,
        "name": "smol-sees-and-hears",
        "base": "local:base",
        "sources": [{"name": name, "model": f"local:{name}"} for name in ("sees", "hears")],
        "merge": {"method": "naivemc", "dtype": "bfloat16"},
        "output": {"dir": "composed"},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def answer(model: Any, processor: Any, prompt: str, *, chat: bool = True, **media: Any) -> str:
    """Generates one greedy answer."""
    if chat:
        prompt = processor.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
    inputs = processor(text=prompt, **media, return_tensors="pt").to(model.dtype)
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def main() -> None:
    """Runs everything and prints the answers."""
    torch.set_num_threads(2)
    sources = make_sources(FOLDER)
    report = merge(write_recipe(FOLDER))
    print(report.to_text())
    composed = report.result.folder
    model = AutoModelForMultimodalLM.from_pretrained(composed, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(composed, trust_remote_code=True)
    print("The capital of France is" + answer(model, processor, "The capital of France is", chat=False))
    shapes = fetch("shapes", FOLDER / "assets").parent / "images"
    picture = Image.open(shapes / "0.png").convert("RGB")
    print("picture:", answer(model, processor, "<image>\nwhat color is the shape?", images=picture))
    sound = read_sound(fetch_sounds(FOLDER / "assets") / "digits/7.wav")
    print("sound:", answer(model, processor, f"<audio>\n{QUESTION}", audio=sound))
    print(f"sources: {', '.join(str(path) for path in sources.values())}")


if __name__ == "__main__":
    main()
