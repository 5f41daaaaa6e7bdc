"""What a plan tells of experts, and that the package's recipe with experts is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from damc_sources import write_natives
from tiny_experts import write_expert

from mcompose.checkpoint import open_checkpoint
from mcompose.errors import CompositionError
from mcompose.pipeline.headers import plan
from mcompose.pipeline.write import MergeOptions, merge

RECIPE = Path(__file__).parents[2] / "recipes" / "chimera.yaml"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's recipe over tiny models of the same classes."""
    folder = tmp_path_factory.mktemp("chimera")
    natives = write_natives(folder / "natives")
    told = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    told["sources"][0]["model"] = f"local:{natives / 'sees'}"
    for expert, kind in (("charts", "pix2struct"), ("documents", "donut")):
        write_expert(kind, folder / kind)
        told["compose"]["experts"][expert]["encoder"] = f"local:{kind}"
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(told, sort_keys=False), encoding="utf-8")
    return path


def test_a_plan_names_the_experts_and_their_tokens(recipe):
    report = plan(recipe)
    told = report.to_dict()["experts"]
    assert list(told) == ["charts", "documents"]
    assert told["charts"] == {
        "encoder": "Pix2StructVisionModel", "modality": "image", "domain": "chart", "tokens": None, "store": "inside",
    }  # fmt: skip
    assert told["documents"]["encoder"] == "DonutSwinModel"
    (line,) = [line for line in report.to_text().splitlines() if "experts" in line]
    assert line == (
        "  experts      'charts' (Pix2StructVisionModel, varying tokens an item), "
        f"'documents' (DonutSwinModel, {told['documents']['tokens']} tokens an item)"
    )


def test_the_package_s_recipe_gives_the_router_its_classes_in_order(recipe):
    folder = merge(recipe, options=MergeOptions(quiet=True)).result.folder
    config = open_checkpoint(folder).config
    assert config["routers"]["image"]["classes"] == ["none", "charts", "documents"]
    assert config["experts"]["charts"]["padding"] == "drop"
    assert config["experts"]["documents"]["tokens"] == plan(recipe).to_dict()["experts"]["documents"]["tokens"]


def test_a_router_without_experts_is_refused(recipe, tmp_path):
    told = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    del told["compose"]["experts"]
    told["compose"]["router"] = {"feature": "mean"}
    path = recipe.with_name("without.yaml")
    path.write_text(yaml.safe_dump(told, sort_keys=False), encoding="utf-8")
    with pytest.raises(CompositionError, match=r"'compose\.router' has nothing to choose among"):
        plan(path)
