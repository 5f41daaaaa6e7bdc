"""The chat template of a composition: the only source's where it writes plain strings down, and nobody's elsewhere."""

import json
import shutil

import pytest
from tiny_sources import write_recipe
from transformers import AutoProcessor

from mcompose.pipeline.write import merge

PLAIN = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}"
LISTS = (
    "{% for m in messages %}{% for c in m['content'] %}{{ '<own>' if c['type'] == 'image' else c['text'] }}"
    "{% endfor %}{% endfor %}"
)
PARTS = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}"
    "{{ '<image>\n' if c['type'] == 'image' else c['text'] }}{% endfor %}{{ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
TWICE = "{% for m in messages %}{{ m['content'] }} {{ m['content'] }}{% endfor %}"
STRICT = "{{ raise_exception('no') }}"
TURNS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this ?"}]},
    {"role": "assistant", "content": "red"},
]


@pytest.fixture
def composed(sources, tmp_path):
    """Makes a composition of sources that have chat templates, and returns its processor."""

    def make(templates, *, base=False):
        given = []
        for name, template in templates.items():
            shutil.copytree(sources / name, tmp_path / name, dirs_exist_ok=True)
            if template is not None:
                (tmp_path / name / "chat_template.jinja").write_text(template, encoding="utf-8")
            given.append({"name": name, "model": f"local:{tmp_path / name}"})
        recipe = write_recipe(
            tmp_path / "recipe.yaml",
            sources=given,
            merge={"method": "naivemc"},
            output={"dir": "out", "format": "composed"},
            **({"base": f"local:{sources / 'base'}"} if base else {}),
        )
        make.report = merge(recipe)
        return AutoProcessor.from_pretrained(tmp_path / "out", trust_remote_code=True)

    return make


def test_the_only_sources_template_is_kept(composed):
    processor = composed({"sees": PLAIN})
    assert processor.apply_chat_template(TURNS) == "[user] <image>\nwhat is this ? [assistant] red "


def test_a_template_over_parts_says_what_the_sources_own_processor_says(composed, tmp_path):
    processor = composed({"sees": PARTS})
    listed = [TURNS[0], {"role": "assistant", "content": [{"type": "text", "text": "red"}]}]
    native = AutoProcessor.from_pretrained(tmp_path / "sees")
    for prompt in (False, True):
        assert processor.apply_chat_template(TURNS, add_generation_prompt=prompt) == native.apply_chat_template(
            listed, add_generation_prompt=prompt, tokenize=False
        )
    # The tokenizer alone carries it too, for whatever serves the checkpoint without a processor.
    assert processor.tokenizer.apply_chat_template(listed[1:], tokenize=False) == "assistant: red "


def test_a_parts_template_gets_the_placeholder_of_the_composition(composed):
    assert composed({"sees": LISTS}).apply_chat_template(TURNS) == "<image>\nwhat is this ?red"


def test_a_template_in_the_file_that_only_processors_read_is_found(sources, tmp_path, composed):
    source = shutil.copytree(sources / "sees", tmp_path / "sees")
    (source / "chat_template.json").write_text(json.dumps({"chat_template": PARTS}), encoding="utf-8")
    assert composed({"sees": None}).apply_chat_template(TURNS) == "user: <image>\nwhat is this ? assistant: red "


@pytest.mark.parametrize("template", [TWICE, STRICT], ids=["twice", "strict"])
def test_a_template_that_does_not_write_strings_as_they_are_is_left_out_aloud(composed, template):
    processor = composed({"sees": template})
    [warning] = composed.report.warnings
    assert "chat template of sees does not write plain strings" in warning
    assert processor.tokenizer.chat_template is None
    assert processor.apply_chat_template(TURNS).startswith("USER: <image>\nwhat is this ? ASSISTANT: red")


def test_no_source_speaks_for_others(composed):
    assert composed({"sees": PLAIN}, base=True).tokenizer.chat_template is None


def test_the_processors_own_file_goes_before_the_tokenizers_template(sources, tmp_path, composed):
    source = shutil.copytree(sources / "sees", tmp_path / "sees")
    settings = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["chat_template"] = "{% for m in messages %}TEXT {{ m['content'] }}{% endfor %}"
    (source / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (source / "chat_template.json").write_text(json.dumps({"chat_template": PARTS}), encoding="utf-8")
    assert AutoProcessor.from_pretrained(source).chat_template == PARTS
    assert composed({"sees": None}).apply_chat_template(TURNS) == "user: <image>\nwhat is this ? assistant: red "


def test_a_template_over_parts_keeps_its_first_line_and_messages_without_content(composed, tmp_path):
    template = "\n" + PARTS.replace("{% for c in m['content'] %}", "{% for c in m['content'] or [] %}")
    template = template.replace("{{ m['role'] }}", "{{ m['role'] }}{{ '!' if 'content' not in m else '' }}")
    processor = composed({"sees": template})
    native = AutoProcessor.from_pretrained(tmp_path / "sees").tokenizer
    turns = [{"role": "assistant", "tool_calls": []}]
    own = native.apply_chat_template(turns, tokenize=False)
    assert own == "\nassistant!:  "
    assert processor.tokenizer.apply_chat_template(turns, tokenize=False) == own
