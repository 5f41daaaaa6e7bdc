"""The chat template of a composition: the only source's where it writes plain strings down, and nobody's elsewhere."""

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
            shutil.copytree(sources / name, tmp_path / name)
            (tmp_path / name / "chat_template.jinja").write_text(template, encoding="utf-8")
            given.append({"name": name, "model": f"local:{tmp_path / name}"})
        recipe = write_recipe(
            tmp_path / "recipe.yaml",
            sources=given,
            merge={"method": "naivemc"},
            output={"dir": "out", "format": "composed"},
            **({"base": f"local:{sources / 'base'}"} if base else {}),
        )
        merge(recipe)
        return AutoProcessor.from_pretrained(tmp_path / "out", trust_remote_code=True)

    return make


def test_the_only_sources_template_is_kept(composed):
    processor = composed({"sees": PLAIN})
    assert processor.apply_chat_template(TURNS) == "[user] <image>\nwhat is this ? [assistant] red "


@pytest.mark.parametrize("template", [LISTS, TWICE, STRICT], ids=["lists", "twice", "strict"])
def test_a_template_that_does_not_write_strings_as_they_are_is_left_out(composed, template):
    processor = composed({"sees": template})
    assert processor.tokenizer.chat_template is None
    assert processor.apply_chat_template(TURNS).startswith("USER: <image>\nwhat is this ? ASSISTANT: red")


def test_no_source_speaks_for_others(composed):
    assert composed({"sees": PLAIN}, base=True).tokenizer.chat_template is None
