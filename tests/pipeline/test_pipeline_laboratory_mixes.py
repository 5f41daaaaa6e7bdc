"""``lab report sphinx`` and ``smola`` on a family of a few steps: every variant is trained, asked and drawn."""

from __future__ import annotations

import pytest
import yaml

from mcompose.errors import RequestError
from mcompose.lab.pictures.settings import PicturesData, PicturesSettings
from mcompose.lab.settings import FitSettings
from mcompose.pipeline.lab import run as laboratory
from mcompose.pipeline.lab.mixes.run import MixPlan, mix_report
from mcompose.pipeline.lab.mixes.variants import SMOLA, SPHINX, write_recipe


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    pytest.importorskip("sklearn")
    from mcompose.lab.pictures.make import make_pictures

    few = FitSettings(2, 1e-3, 4)
    settings = PicturesSettings(
        width=32, layers=2, pool=8, checked=8, experts=dict.fromkeys(("chart", "table", "document"), few), general=few,
        base=few, probe=few, probed=8, data=PicturesData(test=4, questions=3, train=6),
    )  # fmt: skip
    return make_pictures(tmp_path_factory.mktemp("mixes") / "pictures-0", seed=0, settings=settings, workers=0)


def test_some_variants_end_to_end(family, tmp_path):
    plan = MixPlan(steps=(2, 2), names=("channel", "3x3", "mm 4", "lora"), questions=2, batch=4)
    sphinx, smola = (mix_report(name, [family], tmp_path, plan=plan) for name in ("sphinx", "smola"))
    rows = {(row.variant, row.metric): row.mean for report in (sphinx, smola) for row in report.rows}
    assert {variant for variant, _ in rows} == {"base", "channel", "3x3", "mm 4", "lora"}
    assert rows["channel", "tokens"] == 16 + 2 + 64
    assert 18 < rows["3x3", "tokens"] <= 10 * 18
    assert rows["lora", "tokens"] == 16 + 64 + 64 + 2
    assert rows["mm 4", "trained"] > 0
    assert (tmp_path / "sphinx.png").stat().st_size > 10_000
    again = mix_report("sphinx", [family], tmp_path, plan=plan)
    assert again.rows == sphinx.rows


def test_lora_has_about_the_parameters_of_sixteen_experts(family, tmp_path):
    """In a model of width 128, as the reports train."""
    square, wide = 128 * 2, 128 + 256
    linears = [square, square, square, square, wide, wide, wide]
    lora = sum(72 * size for size in linears)
    inputs = [128] * 6 + [256]
    experts = sum(16 * 4 * size + 16 * width + 1 for size, width in zip(linears, inputs, strict=True))
    assert abs(lora / experts - 1) < 0.1
    for variant in (*SPHINX, *SMOLA):
        recipe = yaml.safe_load(write_recipe(family, variant, tmp_path / "r.yaml", steps=(1, 1)).read_text())
        assert next(iter(recipe["compose"]["vision_mix"]["encoders"])) == "own"


def test_the_reports_are_measured_on_pictures_alone(tmp_path):
    with pytest.raises(RequestError, match="smola is not measured on numbers"):
        laboratory.report("smola", tmp_path, seeds=1, family="numbers")
