"""Requests that cannot be met: told before anything is written, in one sentence."""

import json
import os

import pytest
from command_line import digest, linear_recipe, run


@pytest.mark.parametrize("place", ["expert", "expert/out", ".", "./base/../expert", "linked"])
@pytest.mark.parametrize("command", ["plan", "merge"])
def test_an_output_never_touches_a_source(folder, monkeypatch, capsys, place, command):
    (folder / "linked").symlink_to("expert")
    before = digest(folder)
    path = linear_recipe(folder, output={"dir": place})
    assert run([command, str(path)], monkeypatch) == 2
    assert "lie inside one another" in capsys.readouterr().err
    path.unlink()
    assert digest(folder) == before


def test_an_earlier_output_is_not_replaced_by_what_is_made_from_it(folder, monkeypatch, capsys):
    assert run(["merge", str(linear_recipe(folder)), "--quiet"], monkeypatch) == 0
    before = digest(folder / "out")
    again = linear_recipe(folder, "again.yaml", sources=[{"name": "a", "model": "local:out"}])
    assert run(["merge", str(again), "--quiet"], monkeypatch) == 2
    assert "source 'a'" in capsys.readouterr().err
    assert digest(folder / "out") == before
    assert run(["merge", str(again), "--quiet", "-o", str(folder / "next")], monkeypatch) == 0


@pytest.mark.parametrize(("place", "words"), [("/", "lie inside one another"), ("/proc", "Name a folder in it")])
def test_an_output_needs_a_folder_that_can_be_replaced(folder, monkeypatch, capsys, place, words):
    assert run(["merge", str(linear_recipe(folder)), "--quiet", "-o", place], monkeypatch) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("device", ["xyz", "cuda:x", "meta", "cuda:99", ""])
def test_a_device_that_is_not_there_leaves_nothing(folder, monkeypatch, capsys, device):
    assert run(["merge", str(linear_recipe(folder)), "--quiet", "--device", device], monkeypatch) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: Device '{device}' cannot be used: ")
    assert len(message.splitlines()[0]) < 300
    assert not list(folder.glob("out*"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"model_type": 5}', "`model_type` of 'local:expert' is not a name"),
        ('{"model_type": ["llama"]}', "`model_type` of 'local:expert' is not a name"),
        ("{}", "not have a `model_type`"),
        ("[1]", "is not a JSON object"),
        ("{", "is not valid JSON"),
        (None, "Source 'expert': 'local:expert' does not have a config.json."),
    ],
)
def test_a_broken_config_is_named_with_its_source(folder, monkeypatch, capsys, text, words):
    path = folder / "expert/config.json"
    path.unlink() if text is None else path.write_text(text)
    assert run(["merge", str(linear_recipe(folder)), "--quiet"], monkeypatch) == 2
    message = capsys.readouterr().err
    assert words in message
    assert "Source 'expert'" in message
    assert not list(folder.glob("out*"))


@pytest.mark.parametrize(
    "damage", [{"hidden_size": [32]}, {"hidden_size": "x"}, {"rope_parameters": {"rope_theta": {}}}]
)
def test_odd_settings_end_in_no_traceback(folder, monkeypatch, capsys, damage):
    path = folder / "expert/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    assert run(["inspect", str(folder / "expert")], monkeypatch) == 0
    assert "width 32" in capsys.readouterr().out
    assert run(["merge", str(linear_recipe(folder)), "--quiet"], monkeypatch) in {0, 2}


def test_a_source_on_the_command_line_is_named_once(folder, monkeypatch, capsys):
    (folder / "expert/config.json").unlink()
    assert run(["inspect", str(folder / "expert")], monkeypatch) == 2
    assert capsys.readouterr().err.count("expert") == 1
    assert run(["inspect", str(folder / "base/config.json")], monkeypatch) == 2
    assert f"Name the folder of a checkpoint: '{folder / 'base'}'" in capsys.readouterr().err


def test_an_embedding_without_rows_is_no_table(folder, monkeypatch, capsys):
    import numpy as np
    from safetensors.numpy import load_file, save_file

    for name in ("base", "expert"):
        path = folder / name / "model.safetensors"
        save_file({**load_file(path), "model.embed_tokens.weight": np.zeros((), np.float32)}, path)
    assert run(["merge", str(linear_recipe(folder)), "--quiet"], monkeypatch) == 2
    assert "no table of token embeddings" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ['{"version": "1.0", "model": {"vo', "{}", "[]", '{"model": {"vocab": {"a": "b"}}}', "\\udc80"]
)
@pytest.mark.parametrize("command", ["plan", "merge"])
def test_a_broken_tokenizer_that_all_sources_share_is_named_before_weights_are_read(
    folder, monkeypatch, capsys, command, text
):
    for name in ("base", "expert"):
        (folder / name / "tokenizer.json").write_text(text)
        with (folder / name / "model.safetensors").open("r+b") as handle:  # nobody may get as far as the weights
            handle.seek(-64, os.SEEK_END)
            handle.write(b"\xff" * 64)
    assert run([command, str(linear_recipe(folder))], monkeypatch) == 2
    message = capsys.readouterr().err
    assert "'base-too' has a tokenizer.json that cannot be read" in message
    assert f"('{folder / 'base' / 'tokenizer.json'}')" in message
    assert not (folder / "out").exists()


def test_every_report_is_json_on_stdout_and_nothing_else(folder, monkeypatch, capsys):
    path = str(linear_recipe(folder))
    out = str(folder / "out")
    for command in (
        ["inspect", str(folder / "base"), str(folder / "expert")],
        ["plan", path],
        ["merge", path],
        ["verify", out],
        ["diff", out, str(folder / "expert")],
        ["push", out, "someone/something", "--dry-run"],
    ):
        monkeypatch.setenv("HF_TOKEN", "hf_secret_of_the_test")
        assert run([*command, "--json"], monkeypatch) == 0, command
        printed = capsys.readouterr()
        assert isinstance(json.loads(printed.out), dict)
        assert "hf_secret" not in printed.out + printed.err
    for name, content in digest(folder / "out").items():
        assert b"hf_secret" not in content, name
        assert os.fsencode(folder) not in content, name
