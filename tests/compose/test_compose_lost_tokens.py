"""Tokens of a source that the output's tokenizer does not have are told, and a chat's end of turn is asked for."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_sources import BASE_ROWS, tokenizer, write_language_model, write_llava, write_recipe
from transformers import AutoTokenizer

from mcompose.errors import CompositionError
from mcompose.pipeline.headers import plan
from mcompose.pipeline.write import merge

TURNS = ("<|im_start|>", "<|im_end|>")
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def _write(folder: Path, *, template: str = "", end: str = "</s>") -> None:
    write_language_model(folder / "plain", change=0.05, seed=1)
    write_language_model(folder / "chat", change=0.05, seed=2, rows=BASE_ROWS + 8)
    made = tokenizer(*TURNS)
    made.chat_template, made.eos_token = template or None, end
    made.save_pretrained(folder / "chat")


def _recipe(folder: Path, first: str = "plain", **changes: object) -> Path:
    sources = [{"name": name, "model": f"local:{name}"} for name in (first, "chat")]
    merge_settings = {"method": "linear", "weights": {first: 0.5, "chat": 0.5}, **changes}
    return write_recipe(folder / "recipe.yaml", sources=sources, merge=merge_settings, output={"dir": "out"})


def _texts(warnings) -> list[str]:
    return [text for text in warnings if "<|im_end|>" in text]


def test_lost_tokens_are_told_by_plan_merge_and_card_with_the_key_that_keeps_them(tmp_path):
    _write(tmp_path)
    recipe = _recipe(tmp_path)
    (told,) = _texts(plan(recipe).blueprint.warnings)
    assert "'chat'" in told
    assert "merge.tokenizer: chat" in told
    report = merge(recipe)
    assert _texts(report.warnings) == [told]
    assert "<|im_end|>" in (tmp_path / "out/README.md").read_text()


def test_the_key_that_the_warning_names_keeps_them(tmp_path):
    _write(tmp_path)
    report = merge(_recipe(tmp_path, tokenizer="chat"))
    assert not _texts(report.warnings)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").convert_tokens_to_ids(TURNS[1]) > 0
    theirs, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("chat", "out"))
    row = AutoTokenizer.from_pretrained(tmp_path / "chat").convert_tokens_to_ids(TURNS[1])
    assert torch.equal(ours["model.embed_tokens.weight"][row], theirs["model.embed_tokens.weight"][row])


@pytest.mark.parametrize(("template", "end"), [(TEMPLATE, "</s>"), ("{{ messages }}", TURNS[1])], ids=["mark", "eos"])
def test_a_chat_that_would_lose_its_end_of_turn_is_refused_unless_the_recipe_says_so(tmp_path, template, end):
    _write(tmp_path, template=template, end=end)
    for step in (plan, merge):
        with pytest.raises(CompositionError, match="chat model that ends its turns") as refused:
            step(_recipe(tmp_path))
    assert "merge.tokenizer: chat" in (refused.value.hint or "")
    assert not (tmp_path / "out").exists()
    assert _texts(merge(_recipe(tmp_path, tokenizer="plain")).warnings)
    assert merge(_recipe(tmp_path, tokenizer="chat"), output=tmp_path / "kept")


def test_a_chat_merged_into_a_multimodal_model_is_told_what_keeps_its_tokens(tmp_path):
    _write(tmp_path, template=TEMPLATE)
    write_llava(tmp_path / "sees", change=0.05, seed=3)
    with pytest.raises(CompositionError, match=r"tokenizer of 'sees'") as refused:
        plan(_recipe(tmp_path, "sees"))
    assert "output.format: composed" in (refused.value.hint or "")


def test_placeholders_of_media_are_not_lost_words(tmp_path):
    """The composition gives every modality a placeholder of its own."""
    write_language_model(tmp_path / "plain", change=0.05, seed=1)
    write_llava(tmp_path / "chat", change=0.05, seed=3)
    sources = [{"name": name, "model": f"local:{name}"} for name in ("plain", "chat")]
    output = {"dir": "out", "format": "text"}
    recipe = write_recipe(tmp_path / "r.yaml", sources=sources, merge={"method": "linear"}, output=output)
    assert not [text for text in plan(recipe).blueprint.warnings if "<image>" in text]
