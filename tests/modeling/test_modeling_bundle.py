"""The generated code of checkpoints: few files, each source in its section, one meaning per name, the same answers."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from expert_models import write_experts_folder
from routed_models import write_routed_folder

import mcompose.modeling
from mcompose.modeling.bundle import bundle_sources, generate_files, write_files

ISLAND = Path(mcompose.modeling.__file__).parent
COMPOSED = [
    f"{part}_{whole}.py" for whole in ("points", "mcompose") for part in ("configuration", "modeling", "processing")
]
KINDS = {"composed": COMPOSED, "points": COMPOSED[:3], "frames": ["processing_frames.py"]}
# What only the package does: registering classes, generating files, changing models that are then merged or trained.
NOT_SHIPPED = {"registration.py", "groups/editing.py"}

ANSWER = """
import sys
form, out, *folders = sys.argv[1:]
if form == "generated":
    sys.modules["mcompose"] = None
else:
    from mcompose.modeling import register
    register()
import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

made = {}
for number, folder in enumerate(folders):
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    if number:
        batch = torch.load(folder + "/batch.pt")
        with torch.no_grad():
            batch = model.route(**batch)
    else:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (56, 84, 3), dtype=np.uint8))
        cloud = np.random.default_rng(1).standard_normal((50, 3)).astype(np.float32)
        batch = processor(text="USER : <image> what <points> ASSISTANT :", images=image, points=cloud)
        processor.save_pretrained(f"{out}/{number}")
    with torch.no_grad():
        made[f"{number}.logits"] = model(**batch).logits
    model.save_pretrained(f"{out}/{number}")
    made[f"{number}.attention"] = type(model)._can_set_attn_implementation()
    made[f"{number}.experts"] = type(model)._can_set_experts_implementation()
    made[f"{number}.module"] = type(model).__module__.partition(".")[0]
torch.save(made, out + "/made.pt")
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A composition with groups, prefixes and points, and one with experts."""
    where = tmp_path_factory.mktemp("forms")
    return [write_routed_folder(where), write_experts_folder(where / "experts")[0]]


@pytest.fixture(scope="module")
def forms(folders, tmp_path_factory):
    """Where each form of the code, in a process of its own, wrote what it saved and ``made.pt``."""
    written = {}
    for form in ("package", "generated"):
        out = tmp_path_factory.mktemp(form)
        env = {**os.environ, "HF_HOME": str(out / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        env["PYTHONPATH"] = str(ISLAND.parent.parent) if form == "package" else ""
        command = [sys.executable, "-W", "ignore", "-c", ANSWER, form, str(out), *map(str, folders)]
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=out, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        written[form] = out
    return written


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_checkpoint_has_its_files(kind, tmp_path):
    texts = generate_files(kind)
    assert list(texts) == KINDS[kind]
    assert len(texts) <= 6
    assert [path.name for path in write_files(tmp_path, kind)] == sorted(KINDS[kind])
    assert {path.name: path.read_bytes().decode() for path in tmp_path.iterdir()} == texts


def test_another_process_generates_the_same_bytes(tmp_path):
    code = "import sys; from mcompose.modeling.bundle import write_files; write_files(sys.argv[1])"
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ISLAND.parent.parent)}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / seed)], env=env, check=True)
        made = {path.name: path.read_bytes().decode() for path in (tmp_path / seed).iterdir()}
        assert made == generate_files("composed")


def test_every_source_has_one_section_with_its_docstring_and_its_text():
    sections = {}
    rule = f"# {'=' * 118}\n"
    for name, text in generate_files("composed").items():
        head, *parts = text.split(f"\n\n\n{rule}")
        listed = re.findall(r"^- (\S+)$", ast.get_docstring(ast.parse(head)), re.MULTILINE)
        titles = [part.partition("\n")[0].removeprefix("# ") for part in parts]
        assert titles == listed, name
        for title, part in zip(titles, parts, strict=True):
            assert title not in sections
            sections[title] = part.split(f"{rule}", 1)[1]
    sources = {path.relative_to(ISLAND).as_posix(): path for path in ISLAND.rglob("*.py") if path.name != "__init__.py"}
    sources = {name: path for name, path in sources.items() if not name.startswith("bundle/")}
    assert set(sections) == set(sources) - NOT_SHIPPED
    for name, section in sections.items():
        whole = ast.parse(sources[name].read_text(encoding="utf-8"))
        assert ast.get_docstring(ast.parse(section), clean=False) == ast.get_docstring(whole, clean=False)
        kept = [ast.dump(node) for node in ast.parse(section).body]
        moved = [node for node in whole.body if ast.dump(node) not in kept]
        assert all(isinstance(node, ast.Import | ast.ImportFrom) or "__all__" in ast.unparse(node) for node in moved), (
            name
        )
        lines = sources[name].read_text(encoding="utf-8").splitlines()
        assert set(section.splitlines()) <= {*lines, ""}
        comments = [line for line in lines if line.strip().startswith("#") and "pyright:" not in line]
        assert [line for line in section.splitlines() if line.strip().startswith("#")] == comments


def test_nothing_is_unknown_or_unused_in_the_generated_files(tmp_path):
    write_files(tmp_path)
    write_files(tmp_path, "frames")
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--no-cache",
        "--select",
        "F,I",
        "--line-length",
        "120",
    ]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_processor_imports_no_network():
    for name, text in generate_files("composed").items():
        needed = re.findall(r"^from \.(\w+) import", text, re.MULTILINE)
        if not name.startswith("modeling_"):
            assert not [file for file in needed if file.startswith("modeling_")], name


def test_both_forms_give_the_same_bits(forms):
    one, two = (torch.load(forms[form] / "made.pt") for form in ("package", "generated"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        if key.endswith(".module"):
            assert (value, two[key]) == ("mcompose", "transformers_modules")
        elif key.endswith(".logits"):
            assert torch.equal(value, two[key]), key
        else:
            assert value == two[key], key


def test_both_forms_save_the_same_files(forms):
    package = {p.name: p.read_bytes() for p in (forms["package"] / "0").iterdir() if p.is_file()}
    generated = {p.name: p.read_bytes() for p in (forms["generated"] / "0").iterdir() if p.is_file()}
    code = {name: text.encode() for name, text in generate_files("composed").items()}
    for made in (package, generated):
        assert {name: content for name, content in made.items() if name.endswith(".py")} == code
    assert package.keys() == generated.keys()
    assert package["model.safetensors"] == generated["model.safetensors"]
    alone = {p.name: p.read_bytes() for p in (forms["generated"] / "1").glob("*.py")}
    assert alone.items() <= code.items()
    assert "modeling_mcompose.py" in alone


def source(*lines, doc="What it does."):
    return "\n".join([f'"""{doc}"""', "", "from __future__ import annotations", "", *lines, ""])


def merged(sources, **roots):
    named = {f"{part}_mcompose": modules for part, modules in roots.items()}
    return bundle_sources({name.replace("_", "."): text for name, text in sources.items()}, [named], version="1")


def test_sources_stand_behind_what_they_need_and_shared_ones_in_the_first_file(tmp_path):
    sources = {
        "a_top": source("import math", "", "from ..b.low import TWO", "", "ANSWER = TWO + math.floor(1.5)  # kept"),
        "b_low": source("from .shared import ONE", "", "TWO = 2 * ONE", '"""About it."""'),
        "b_shared": source("import math as numbers", "", "ONE = numbers.ceil(0.5)"),
        "c_other": source("from ..b.shared import ONE", "", "THREE = ONE + 2"),
        "config": source("NOTHING = 0"),
    }
    files = merged(sources, configuration=["config"], modeling=["a.top"], processing=["c.other"])
    assert "# b/shared.py" in files["configuration_mcompose.py"]
    text = files["modeling_mcompose.py"]
    assert text.index("# b/low.py") < text.index("# a/top.py")
    assert "from .configuration_mcompose import ONE\n" in text
    assert text.endswith("ANSWER = TWO + math.floor(1.5)  # kept\n")
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "__init__.py").touch()
    code = f"from {tmp_path.name} import modeling_mcompose as m, processing_mcompose as p; print(m.ANSWER, p.THREE)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path.parent, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "3"]


def test_imports_for_types_alone_stay_for_types_alone():
    sources = {
        "top": source(
            "from typing import TYPE_CHECKING", "", "if TYPE_CHECKING:", "    from fractions import Fraction", "",
            "    from .low import Low", "", "", "def half(low: Low) -> Fraction: ...",
        ),
        "low": source("class Low: ..."),
    }  # fmt: skip
    text = merged({**sources}, configuration=["low"], modeling=["top"])["modeling_mcompose.py"]
    assert "if TYPE_CHECKING:\n    from fractions import Fraction\n" in text
    assert "from .configuration_mcompose import Low\n" in text
    assert (
        "TYPE_CHECKING"
        not in merged(
            {**sources, "low": source("from fractions import Fraction", "", "", "class Low(Fraction): ...")},
            configuration=["low", "top"],
        )["configuration_mcompose.py"]
    )
    with pytest.raises(ValueError, match=r"top\.py names types of low\.py, which goes into a later file"):
        merged(sources, configuration=["top"], modeling=["low"])


LOW = source("VALUE = 1")


@pytest.mark.parametrize(
    ("top", "low", "message"),
    [
        (["_NAME = 1", "", "from .low import VALUE"], source("_NAME = VALUE = 2"), "'_NAME' means one thing in low.py"),
        (["from os import path", "from .low import VALUE"], source("path = VALUE = 2"), "'path' means one thing"),
        (["import os as VALUE", "from .low import OTHER"], source("VALUE = OTHER = 2"), "'VALUE' means one thing"),
        (["from PIL import Image", "from .low import VALUE"], source("from PIL.Image import Image", "VALUE = Image"),
         "'Image' means one thing"),
        (["from .low import VALUE", "open = VALUE"], LOW, "gives 'open' a new meaning"),
        (["from .low import VALUE", "", "def change():", "    global _STATE", "    _STATE = VALUE"],
         source("_STATE = VALUE = 0"), "'_STATE' means one thing"),
        (["from .low import VALUE"], source("from .top import OTHER", "VALUE = OTHER"), "a circle: top.py -> low"),
        (["from .low import VALUE as v"], LOW, "'as' cannot be merged"),
        (["from .low import *"], LOW, "cannot be merged"),
        (["from . import low"], LOW, "know no modules or folders"),
        (["from .missing import VALUE"], LOW, "know no modules or folders"),
        (["from ..low import VALUE"], LOW, "leaves the island"),
        (["from .low import OTHER"], LOW, "low.py, which does not define it"),
        (["from .low import path"], source("from os import path"), "low.py, which does not define it"),
        (["import mcompose.errors"], LOW, "which does not travel"),
        (["def late():", "    from .low import VALUE", "    return VALUE"], LOW, "inside a function or block"),
        (["def late():", "    from mcompose.errors import X", "    return X"], LOW, "which does not travel"),
        (["import os; VALUE = 1"], LOW, "beside an import would be lost"),
        (["import os  # a reason"], LOW, "beside an import would be lost"),
        (["TEXT = '''", "from .somewhere import something", "'''"], LOW, "reads like an import of '.somewhere'"),
    ],
)  # fmt: skip
def test_what_would_change_its_meaning_is_refused(top, low, message):
    assert merged({"top": source("from .low import VALUE", "TOP = VALUE"), "low": LOW}, configuration=["top"])
    with pytest.raises(ValueError, match=re.escape(message)):
        merged({"top": source(*top, "OTHER = 3"), "low": low}, configuration=["top"])


def test_a_name_that_another_generated_file_keeps_to_itself_is_free():
    sources = {
        "one": source("_NAME = A = 1"),
        "two": source("_NAME = 2"),
        "three": source("from .one import A", "_NAME = A"),
    }
    files = merged(sources, configuration=["one"], modeling=["two"], processing=["three"])
    assert len(files) == 3
    sources |= {"two": source("from .three import B", "A = B"), "three": source("from .one import A", "B = A")}
    with pytest.raises(ValueError, match="'A' means one thing"):
        merged(sources, configuration=["one"], modeling=["two"])


def test_a_source_without_docstring_or_with_other_annotations_is_refused():
    with pytest.raises(ValueError, match=r"top\.py has no docstring"):
        merged({"top": "A = 1\n"}, configuration=["top"])
    with pytest.raises(ValueError, match=r"top\.py lacks 'from __future__ import annotations'"):
        merged({"top": '"""Doc."""\n\nA = 1\n'}, configuration=["top"])
    with pytest.raises(ValueError, match="above its docstring"):
        merged({"top": f"# Copyright\n{LOW}"}, configuration=["top"])
    text = merged({"top": f"# pyright: basic\n{LOW}"}, configuration=["top"])["configuration_mcompose.py"]
    assert text.startswith('# pyright: basic\n"""')


def test_the_configuration_says_where_the_code_is(folders):
    for folder in folders:
        names = {
            value.partition(".")[0] for value in json.loads((folder / "config.json").read_text())["auto_map"].values()
        }
        assert names <= {name.removesuffix(".py") for name in COMPOSED}
