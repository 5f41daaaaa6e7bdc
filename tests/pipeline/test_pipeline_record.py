"""Scores that are recorded stand in ledger, lock and card, and the output still verifies."""

import pytest
from tiny_sources import write_recipe

from mcompose.errors import CheckpointError
from mcompose.ledger import Ledger
from mcompose.merge.verify import verify
from mcompose.pipeline.record import record_scores
from mcompose.pipeline.write import merge


def test_recorded_scores_replace_earlier_ones_and_the_output_still_verifies(sources, tmp_path):
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        sources=[{"name": "sees", "model": f"local:{sources / 'sees'}"}],
        merge={"method": "naivemc"},
        output={"dir": "out"},
    )
    folder = merge(recipe).result.folder
    assert "has not been evaluated" in (folder / "README.md").read_text()
    for value in (0.25, 0.75):
        record_scores(folder, [{"task": "shapes", "metric": "exact_match", "value": value, "n": 40}])
    steps = [step for step in Ledger.read(folder).steps if step.step == "eval"]
    assert [step.details["results"][0]["value"] for step in steps] == [0.75]
    card = (folder / "README.md").read_text()
    assert "| shapes | exact_match | 0.750 | 40 |" in card
    assert "has not been evaluated" not in card
    assert verify(folder).problems == ()


def test_a_folder_that_is_no_output_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="does not contain mcompose/ledger"):
        record_scores(tmp_path, [])
