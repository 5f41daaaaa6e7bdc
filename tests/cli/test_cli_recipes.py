"""What the recipes of the package say of disk and memory is what their plans say, on headers of the models' shapes."""

import json
import re
from pathlib import Path

import pytest
import yaml
from command_line import run
from sparse_checkpoints import TEXT, language, write_checkpoint, write_llava, write_video_llava

from mcompose.pipeline import headers

RECIPES = Path(__file__).parents[2] / "recipes"
MISTRAL = {**TEXT, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "num_key_value_heads": 8}
MISTRAL |= {"intermediate_size": 14336, "sliding_window": None}
YOURS = "audio"
"""A source whose size nobody knows before it is made."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_llava(folder / "llava")
    write_video_llava(folder / "video")
    write_checkpoint(folder / "vicuna", language("", TEXT), TEXT, shards=2, added={})
    write_checkpoint(folder / "mistral", language("", MISTRAL), MISTRAL, shards=2, added={})
    return folder


def stands_for(reference: str) -> str:
    """The model of these shapes."""
    name = reference.lower()
    kinds = {
        "video-llava": "video",
        "llava": "llava",
        "vicuna": "vicuna",
        "mistral": "mistral",
        "wizardmath": "mistral",
    }
    return next(kind for part, kind in kinds.items() if part in name)


def placed(recipe: dict, models: Path) -> float:
    """Puts local models into a recipe; gives the GB of those that a user would download."""
    fetched = {}

    def local(reference: str) -> str:
        folder = models / stands_for(reference)
        if reference.startswith("hub:"):
            fetched[reference] = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e9
        return f"local:{folder}"

    recipe["sources"] = [source for source in recipe["sources"] if source["name"] != YOURS]
    for source in recipe["sources"]:
        source["model"] = local(source["model"])
    if "base" in recipe:
        recipe["base"] = local(recipe["base"])
    return sum(fetched.values())


def stated(header: str, pattern: str) -> float | None:
    found = re.search(rf"(\d+) {pattern}", header)
    return None if found is None else float(found[1])


@pytest.mark.parametrize("name", ["damc-convert", "llava-plus-expert-llm", "naivemc-vicuna", "ties", "weight-mix"])
def test_figures_of_a_recipe_are_those_of_its_plan(models, tmp_path, monkeypatch, capsys, name):
    text = (RECIPES / f"{name}.yaml").read_text()
    header = text.split("schema:")[0]
    recipe = yaml.safe_load(text)
    download = placed(recipe, models)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    monkeypatch.setattr(headers, "check_composed", lambda blueprint: None)  # these models are headers alone
    assert run(["plan", tmp_path / "recipe.yaml", "--json"], monkeypatch) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (stated(header, "GB to download") or 0) == round(download)
    assert stated(header, "GB for the result") == round(plan["bytes_to_write"] / 1e9)
    assert plan["peak_memory"] < stated(header, "MB") * 1e6
