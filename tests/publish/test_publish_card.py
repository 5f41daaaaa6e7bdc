"""The card as text: a golden one, the licence rule, tags, paths, and a snippet that runs."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from publish_samples import COMMIT, LEDGER, RECIPE, llava_output, small_output

from mcompose.card_mark import is_edited_card
from mcompose.ledger import Ledger, SourceRow, StepRow, TensorRow
from mcompose.publish import model_card, write_card
from mcompose.publish.traces import find_machine_paths, holds_secret, without_machine_paths


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---")[1])


def snippet_of(card: str) -> str:
    found = re.search(r"```python\n(.*?)\n```", card, re.DOTALL)
    assert found
    return found[1]


@pytest.fixture
def output(tmp_path):
    return small_output(tmp_path / "out")


def test_publish_card_is_the_golden_text(output):
    golden = Path(__file__).with_name("golden_card.md").read_text(encoding="utf-8")
    assert model_card(LEDGER, output, "org/sees-and-hears") == golden


def test_publish_card_does_not_depend_on_where_the_output_lies(output, tmp_path):
    other = output.rename(tmp_path / "elsewhere")
    card = model_card(LEDGER, other, None)
    assert str(tmp_path) not in card
    assert card == model_card(Ledger.from_json(LEDGER.to_json()), other, None)


def test_publish_card_counts_what_the_ledger_holds(output):
    card = model_card(LEDGER, output, None)
    assert "| language | 17 | 2 | 2 |" in card  # 4 x 3 and 5
    assert "| encoder:sees | 100 | 1 |  |  | 1 |" in card
    assert "| **all** | 117 | 3 | 2 |  | 1 |" in card
    assert "- 1 of hears: tied to the embedding" in card
    assert "Weights: sees 0.5, hears 0.5." in card


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (("mit", "mit"), {"license": "mit"}),
        (("mit", "apache-2.0"), {"license": "other", "license_name": "mixed-mit-and-apache-2.0"}),
        (("mit", ""), {"license": "other", "license_name": "mixed-mit-and-unstated"}),
        (("", ""), {"license": "other", "license_name": "mixed-unstated"}),
        (("mit, gemma", "mit, gemma"), {"license": "other", "license_name": "mixed-mit-gemma"}),
    ],
)
def test_publish_card_states_a_licence_only_when_all_sources_share_it(output, licences, expected):
    sources = tuple(SourceRow(f"s{k}", f"hub:org/m{k}", licence=licence) for k, licence in enumerate(licences))
    fields = front_matter(model_card(dataclasses.replace(LEDGER, sources=sources), output, None))
    assert {key: value for key, value in fields.items() if key.startswith("license")} == expected


def test_publish_card_names_duties_of_known_licences(output):
    sources = (SourceRow("a", "hub:org/a", licence="gemma"), SourceRow("b", "hub:org/b", licence="cc-by-nc-4.0"))
    card = model_card(dataclasses.replace(LEDGER, sources=sources), output, None)
    assert "Gemma terms of use" in card
    assert "no commercial use" in card


@pytest.mark.parametrize(
    ("kind", "modalities", "tag"),
    [
        ("native", ("image",), "image-text-to-text"),
        ("native", ("image", "video"), "image-text-to-text"),
        ("native", ("video",), "video-text-to-text"),
        ("native", ("audio",), "audio-text-to-text"),
        ("composed", ("image", "audio"), "any-to-any"),
        ("composed", ("points",), "any-to-any"),
        ("text", (), "text-generation"),
    ],
)
def test_publish_card_pipeline_tag(output, kind, modalities, tag):
    ledger = dataclasses.replace(LEDGER, output_format=kind, modalities=modalities)
    assert front_matter(model_card(ledger, output, None))["pipeline_tag"] == tag


def test_publish_card_base_models_are_hub_repositories_only(output):
    fields = front_matter(model_card(LEDGER, output, None))
    assert fields["base_model"] == ["llava-hf/llava-1.5-7b-hf", "lmsys/vicuna-7b-v1.5"]
    assert fields["base_model_relation"] == "merge"
    local = dataclasses.replace(LEDGER, sources=(SourceRow("a", "local:a"),))
    assert "base_model" not in front_matter(model_card(local, output, None))


def test_publish_card_shows_evaluation_and_plots(output):
    details = {"results": [{"task": "name", "metric": "accuracy", "value": 0.98765, "n": 200}]}
    ledger = dataclasses.replace(LEDGER, steps=(*LEDGER.steps, StepRow("eval", "mcompose eval x", details=details)))
    (output / "mcompose" / "numbers.png").write_bytes(b"png")
    card = model_card(ledger, output, None)
    assert "| name | accuracy | 0.988 | 200 |" in card
    assert "![numbers](mcompose/numbers.png)" in card
    assert "has not been evaluated" not in card
    assert "has not been evaluated" in model_card(LEDGER, output, None)


def test_publish_card_hides_paths_of_this_machine(tmp_path):
    recipe = RECIPE.replace("local:donors/audio", "local:/home/me/secret/audio").replace("build/", "/srv/me/")
    output = small_output(tmp_path / "out", recipe=recipe)
    sources = (SourceRow("hears", "local:/home/me/secret/audio", "qwen2_audio"),)
    steps = (StepRow("merge", "mcompose merge ~/me/recipe.yaml", details={"warnings": ["see /home/me/log.txt now"]}),)
    card = model_card(dataclasses.replace(LEDGER, sources=sources, steps=steps), output, None)
    for trace in ("/home", "secret/", "/srv", "~/", str(tmp_path)):
        assert trace not in card
    assert "local:audio" in card
    assert "- see log.txt now" in card


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("local:/home/me/a b", "local:a b"),
        ("dir: ~/x/y.yml", "dir: y.yml"),
        (r"C:\Users\me\m and D:\x", "m and x"),
        ("local:../donors/audio", "local:../donors/audio"),
        ("hub:org/name@rev https://a.b/c/d", "hub:org/name@rev https://a.b/c/d"),
        ("glob: '**/*.weight', 1/2, and/or, a / b", "glob: '**/*.weight', 1/2, and/or, a / b"),
        ("'/abs/q', [/r/s]", "'q', [s]"),
    ],
)
def test_publish_card_path_shortening(text, short):
    assert without_machine_paths(text) == short
    assert bool(find_machine_paths(text)) == (text != short)


def test_publish_card_fence_outlives_a_fence_in_the_recipe(tmp_path):
    output = small_output(tmp_path / "out", recipe=RECIPE + "# ```\n")
    assert "````yaml\nschema: 1" in model_card(LEDGER, output, None)


def test_publish_card_table_cells_cannot_break_the_table(output):
    ledger = dataclasses.replace(LEDGER, tensors=(TensorRow("a", "merged", "x|y\nz", shape=(2,)),))
    assert "| x\\|y z | 2 | 1 |" in model_card(ledger, output, None)


def test_publish_card_edited_by_hand_is_kept(output):
    path = output / "README.md"
    assert not is_edited_card(path)
    assert write_card(LEDGER, output, None)
    assert not is_edited_card(path)
    assert write_card(LEDGER, output, "org/name"), "a card of ours is refreshed"
    assert "org/name" in path.read_text()
    edited = path.read_text().replace("# sees-and-hears", "# My own title")
    path.write_text(edited)
    assert not write_card(LEDGER, output, "org/name")
    assert path.read_text() == edited
    assert sorted(p.name for p in output.glob(".*")) == []


def test_publish_card_secrets_are_found_in_small_files(tmp_path):
    file = tmp_path / "notes.md"
    file.write_text("nothing, hf_hub_download and hf_short")
    assert not holds_secret(file, secrets=("s3cret",))
    file.write_text("x s3cret y")
    assert holds_secret(file, secrets=("s3cret",))
    file.write_text("x hf_" + "aB" * 17)
    assert holds_secret(file, secrets=())


def run_snippet(card: str, folder: Path) -> str:
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    settings = keep | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", snippet_of(card)],
        cwd=folder, env=settings, capture_output=True, text=True, timeout=170,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("chat_template", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_publish_card_snippet_runs_on_a_native_output(tmp_path, chat_template):
    folder = llava_output(tmp_path / "sees-and-codes", chat_template=chat_template)
    card = model_card(Ledger.read(folder), folder, None)
    assert "LlavaForConditionalGeneration" in snippet_of(card)
    assert ("apply_chat_template" in snippet_of(card)) == chat_template
    assert run_snippet(card, tmp_path).endswith("\n")


def test_publish_card_snippet_runs_on_a_text_output(tmp_path):
    import torch
    from publish_samples import llava_processor
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path / "words"
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        LlamaForCausalLM(config).save_pretrained(folder)
    llava_processor(chat_template=False).tokenizer.save_pretrained(folder)
    ledger = dataclasses.replace(LEDGER, name="words", output_format="text", modalities=())
    assert run_snippet(model_card(ledger, folder, None), tmp_path).endswith("\n")


def test_publish_card_snippet_names_a_class_safely(output):
    (output / "config.json").write_text(json.dumps({"architectures": ["x; import os"]}))
    ledger = dataclasses.replace(LEDGER, output_format="native")
    assert "import os" not in snippet_of(model_card(ledger, output, None))


def test_publish_card_snippet_quotes_its_path(output):
    ledger = dataclasses.replace(LEDGER, name='a"; import os; "')
    compiled = compile(snippet_of(model_card(ledger, output, None)), "card", "exec")
    assert "os" not in compiled.co_names


def test_publish_card_commit_of_sources_is_shown(output):
    assert f"@ `{COMMIT[:12]}`" in model_card(LEDGER, output, None)
