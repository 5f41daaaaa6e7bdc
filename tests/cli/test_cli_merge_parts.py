"""``merge --part`` and ``--finish``: the bytes of one run, and a sentence for parts that do not make a whole."""

from __future__ import annotations

import shutil

import pytest
from command_line import digest, linear_recipe, run
from tiny_sources import write_language_model


@pytest.fixture(scope="module")
def donors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    write_language_model(folder / "base")
    write_language_model(folder / "expert", change=0.05, seed=1)
    return folder


@pytest.fixture
def home(donors, tmp_path):
    shutil.copytree(donors, tmp_path / "home")
    return tmp_path / "home"


def sharded(home, **merge):
    settings = {"merge": {"method": "linear", **merge}, "output": {"dir": "out", "max_shard_size": "20KB"}}
    if "method" in merge and merge["method"] != "linear":
        settings["base"] = "local:base"
    return linear_recipe(home, **settings)


def weights(home):
    return {name: data for name, data in digest(home / "out").items() if not name.endswith(("lock.json", "README.md"))}


@pytest.mark.parametrize("settings", [{}, {"method": "ties-global", "parameters": {"density": 0.5}}], ids=str)
def test_parts_give_the_bytes_of_one_run(home, monkeypatch, settings):
    recipe = sharded(home, **settings)
    assert run(["merge", recipe, "--quiet"], monkeypatch) == 0
    whole = weights(home)
    assert len([name for name in whole if name.endswith(".safetensors")]) > 3
    shutil.rmtree(home / "out")
    for part in ("3/3", "1/3", "2/3", "1/3"):  # in any order; one that is complete is not made again
        assert run(["merge", recipe, "--part", part, "--quiet"], monkeypatch) == 0
        assert not (home / "out").exists()
    assert run(["merge", recipe, "--finish", "--quiet"], monkeypatch) == 0
    assert weights(home) == whole
    assert run(["verify", home / "out"], monkeypatch) == 0
    assert sorted(path.name for path in home.iterdir()) == ["base", "expert", "out", "recipe.yaml"]


def test_parts_that_do_not_make_a_whole_are_refused(home, monkeypatch, capsys):
    recipe = sharded(home)

    def says(*arguments):
        code = run(["merge", recipe, *arguments, "--quiet"], monkeypatch)
        return code, " ".join(capsys.readouterr().err.split())

    def refused(sentence, *arguments):
        code, text = says(*arguments)
        assert code != 0
        assert sentence in text
        assert not (home / "out").exists()

    refused("has no parts beside it", "--finish")
    refused("'4/3' is not a part", "--part", "4/3")
    refused("which 99 parts cannot share", "--part", "1/99")
    refused("are two steps", "--part", "1/2", "--finish")
    assert says("--part", "1/2")[0] == 0
    refused("Part 2/2 of", "--finish")
    assert says("--part", "1/3")[0] == 0
    refused("parts of several splits (n = 2 and n = 3)", "--finish")
    shutil.rmtree(home / "out.part-1-of-3.partial")
    assert says("--part", "2/2")[0] == 0
    (home / "out.part-2-of-2.partial" / "part.json").unlink()
    refused("is not complete", "--finish")
    assert says("--part", "2/2")[0] == 0
    sharded(home, parameters={"normalize": False}, weights={"base-too": 0.9, "expert": 0.3})
    refused("is of another recipe, other sources or another version", "--finish")
    sharded(home)
    assert says("--finish")[0] == 0
    assert (home / "out").is_dir()


def test_damaged_parts_are_made_again_and_lost_files_are_named(home, monkeypatch, capsys):
    recipe = sharded(home)
    assert run(["merge", recipe, "--quiet"], monkeypatch) == 0
    whole = weights(home)
    shutil.rmtree(home / "out")
    for part in ("1/2", "2/2"):
        assert run(["merge", recipe, "--part", part, "--quiet"], monkeypatch) == 0
    first, *_, last = sorted((home / "out.part-2-of-2.partial").glob(".*.safetensors"))
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    kept = last.read_bytes()
    last.unlink()
    capsys.readouterr()
    assert run(["merge", recipe, "--finish", "--quiet"], monkeypatch) != 0
    assert "has lost 'model-" in capsys.readouterr().err
    last.write_bytes(kept)
    assert run(["merge", recipe, "--finish", "--quiet"], monkeypatch) == 0
    assert weights(home) == whole
