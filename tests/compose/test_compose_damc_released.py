"""Donors in the form that the paper's authors released become composed checkpoints that recipes can name."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from damc_sources import composed
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model
from tiny_sources import IMAGE_ID, tokenizer, write_language_model
from transformers import CLIPImageProcessor, CLIPVisionModel, LlamaForCausalLM

from mcompose.cli.app import main
from mcompose.compose import ImportRequest, import_released
from mcompose.errors import CheckpointError, CompositionError
from mcompose.merge.verify import verify
from mcompose.modeling import ComposedForConditionalGeneration, ComposedProcessor, register
from mcompose.refs import ModelRef

RANK, ALPHA = 3, 6
ROLES = {"self_attn": "qkvo", "mlp": ("gate", "up", "down")}
LINEARS = [f"layers.{n}.{block}.{role}_proj" for n in range(2) for block, roles in ROLES.items() for role in roles]


def write_released(folder: Path, state: dict, *, modality="vision", same=False, vectors=True, **config) -> Path:
    """A donor as its authors save it, from random factors; ``same`` gives both groups the same."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for linear in LINEARS:
        rows, columns = state[f"model.{linear}.weight"].shape
        for group in ("default", modality):
            stem = f"base_model.model.model.{linear}.lora"
            if same and group != "default":
                for letter in "AB":
                    tensors[f"{stem}_{letter}.{group}.weight"] = tensors[f"{stem}_{letter}.default.weight"].clone()
                continue
            tensors[f"{stem}_A.{group}.weight"] = torch.randn((RANK, columns), generator=generator) * 0.2
            tensors[f"{stem}_B.{group}.weight"] = torch.randn((rows, RANK), generator=generator) * 0.1
    projector = tiny_model("llava").model.multi_modal_projector
    for place, linear in (("0", projector.linear_1), ("2", projector.linear_2)):
        for kind in ("weight", "bias"):
            tensors[f"base_model.model.model.modal_projectors.{modality}.{place}.{kind}"] = getattr(
                linear, kind
            ).detach()
    if vectors:
        for side in ("prefix", "suffix"):
            tensors[f"model.{side}_tokens.{modality}"] = torch.randn((5, 32), generator=generator)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    table = {"lora_alpha": ALPHA, "lora_strategy": "modal+language", "mm_vision_select_layer": -1, **config}
    (folder / "config.json").write_text(json.dumps(table))
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base, and the encoder as a checkpoint of its own."""
    folder = tmp_path_factory.mktemp("parts")
    write_language_model(folder / "base")
    llava = tiny_model("llava")
    encoder = CLIPVisionModel(llava.config.vision_config)
    encoder.load_state_dict(llava.model.vision_tower.state_dict())
    encoder.save_pretrained(folder / "encoder")
    side = llava.config.vision_config.image_size
    CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(
        folder / "encoder"
    )
    return folder


def imported(parts: Path, donor: Path, output: Path) -> Path:
    refs = {name: ModelRef("local", str(parts / name)) for name in ("base", "encoder")}
    return import_released(ImportRequest(donor, output=output, **refs))


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (28, 28, 3), dtype=np.uint8))


def folded(state: dict, donor: dict) -> dict:
    """The base's tensors with the text group's factors in them."""
    whole = dict(state)
    for linear in LINEARS:
        a, b = (donor[f"base_model.model.model.{linear}.lora_{letter}.default.weight"] for letter in "AB")
        whole[f"model.{linear}.weight"] = state[f"model.{linear}.weight"] + ALPHA / RANK * (b @ a)
    return whole


def test_a_donor_whose_groups_are_one_is_a_llava_with_that_language_model(parts, tmp_path):
    base = load_file(parts / "base/model.safetensors")
    donor = write_released(tmp_path / "released", base, same=True, vectors=False)
    folder = imported(parts, donor, tmp_path / "donor")
    assert verify(folder).ok
    native = tiny_model("llava")
    whole = folded(base, load_file(donor / "adapter_model.safetensors"))
    state = native.state_dict()
    for name, tensor in whole.items():
        target = state[name if name.startswith("lm_head") else name.replace("model.", "model.language_model.", 1)]
        target[: len(tensor)] = tensor
    native.load_state_dict(state)
    native.config.image_token_id = native.model.config.image_token_id = IMAGE_ID
    register()
    model, processor = (
        ComposedForConditionalGeneration.from_pretrained(folder), ComposedProcessor.from_pretrained(folder)
    )  # fmt: skip
    inputs = processor(text="USER : <image> what is this ASSISTANT :", images=picture())
    with torch.no_grad():
        ours = model(**inputs).logits
        pixels = {key.split("__")[1]: value for key, value in inputs.items() if "__" in key}
        plain = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        theirs = native(**plain, **pixels).logits
    assert (inputs["input_ids"] == IMAGE_ID).sum() == 4
    torch.testing.assert_close(ours, theirs[..., : ours.shape[-1]], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def donor(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    base = load_file(parts / "base/model.safetensors")
    released = write_released(folder / "vision-damc", base, image_aspect_ratio="pad")
    return released, imported(parts, released, folder / "donor")


def test_every_tensor_is_where_it_belongs_bit_for_bit(parts, donor):
    released, folder = donor
    theirs, ours = load_file(released / "adapter_model.safetensors"), load_file(folder / "model.safetensors")
    base = load_file(parts / "base/model.safetensors")
    for linear in LINEARS:
        name = f"model.language_model.{linear}"
        assert torch.equal(ours[f"{name}.weight"], base[f"model.{linear}.weight"])
        for letter in "AB":
            for group, spelt in (("text", "default"), ("image", "vision")):
                found = ours[f"{name}.groups.{group}.lora_{letter}.weight"]
                assert torch.equal(found, theirs[f"base_model.model.model.{linear}.lora_{letter}.{spelt}.weight"])
    for side in ("prefix", "suffix"):
        assert torch.equal(ours[f"model.{side}_tokens.image"], theirs[f"model.{side}_tokens.vision"])
    table = json.loads((folder / "config.json").read_text())
    spec = {"kind": "low_rank", "rank": RANK, "scale": ALPHA / RANK}
    assert table["routed_groups"] == {"text": spec, "image": spec}
    assert (table["prefix_tokens"], table["suffix_tokens"]) == ({"image": 5}, {"image": 5})
    processor = ComposedProcessor.from_pretrained(folder)
    assert processor.processors["donor"].image_processor.do_pad
    inputs = processor(text="USER : <image> what", images=picture())
    assert (inputs["mm_token_type_ids"] == 1).sum() == 4 + 5 + 5


def test_text_alone_is_the_base_with_the_text_group(parts, donor):
    released, folder = donor
    whole = folded(load_file(parts / "base/model.safetensors"), load_file(released / "adapter_model.safetensors"))
    alone = LlamaForCausalLM.from_pretrained(parts / "base")
    alone.load_state_dict(whole)
    model = ComposedForConditionalGeneration.from_pretrained(folder)
    ids = torch.tensor([[1, 5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, alone(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


def test_recipes_compose_it_like_any_donor(parts, donor, tmp_path):
    _, folder = donor
    ours = composed(tmp_path, parts, {"sees": folder}, {"method": "damc"}, compose={"decouple": "donor"})
    theirs = load_file(folder / "model.safetensors")
    for key, tensor in load_file(ours / "model.safetensors").items():
        assert torch.equal(tensor, theirs[key.replace(".towers.sees.", ".towers.donor.")]), key
    assert {path.name for path in (ours / "processors").iterdir()} == {"sees"}
    assert verify(ours).ok


def damaged(tensors: dict, how: str) -> dict:
    first = next(iter(tensors))
    if how == "composition":
        return {**tensors, "model.layers.0.self_attn.q_proj.lora_A.default-vision.weight": torch.zeros(RANK, 32)}
    if how == "stranger":
        return {**tensors, "model.relrep.weight": torch.zeros(3)}
    if how == "pair":
        return {key: value for key, value in tensors.items() if key != first}
    if how == "rank":
        return {**tensors, first: torch.zeros(RANK + 1, tensors[first].shape[1])}
    if how == "deeper projector":
        return {**tensors, "model.modal_projectors.vision.4.weight": torch.zeros(2, 2)}
    if how == "projector":
        return {key: value for key, value in tensors.items() if ".2.weight" not in key}
    return {key.replace("layers.1.", "layers.7."): value for key, value in tensors.items()}


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("composition", "is a composition already"),
        ("stranger", "'model.relrep.weight' in .* is none of a donor's tensors"),
        ("pair", "are no pair"),
        ("rank", "are no pair"),
        ("projector", "does not hold 'linear_2.weight'"),
        ("deeper projector", "holds '4.weight', and LLaVA's has two linear layers"),
        ("depth", "adapts 'layers.7.*which the base does not have"),
    ],
)
def test_what_is_no_donor_is_refused(parts, donor, tmp_path, how, words):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_bytes((donor[0] / "config.json").read_bytes())
    save_file(damaged(load_file(donor[0] / "adapter_model.safetensors"), how), broken / "adapter_model.safetensors")
    with pytest.raises((CheckpointError, CompositionError), match=words):
        imported(parts, broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pickles_and_other_modalities_are_refused_with_what_to_do(parts, tmp_path):
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "adapter_model.bin").write_bytes(b"\x80")
    with pytest.raises(CheckpointError, match="never opened") as told:
        imported(parts, pickled, tmp_path / "out")
    assert "weights_only=True" in told.value.hint
    base = load_file(parts / "base/model.safetensors")
    audio = write_released(tmp_path / "audio", base, modality="audio")
    with pytest.raises(CompositionError, match="is of audio, and transformers has no class"):
        imported(parts, audio, tmp_path / "out")
    silent = write_released(tmp_path / "silent", base)
    (silent / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="does not say LoRA's alpha"):
        imported(parts, silent, tmp_path / "out")


def test_an_audio_donors_q_former_is_refused_by_its_modality(tmp_path):
    folder = tmp_path / "released"
    folder.mkdir()
    stem = "base_model.model.model.modal_projectors.audio."
    keys = ("audio_query_tokens", "audio_Qformer.bert.encoder.layer.0.attention.self.query.weight", "audio_proj.weight")
    save_file({stem + key: torch.zeros(2, 2) for key in keys}, folder / "adapter_model.safetensors")
    (folder / "config.json").write_text("{}")
    nowhere = ModelRef("local", str(tmp_path / "nowhere"))
    with pytest.raises(CompositionError, match="is of audio, and transformers has no class for its encoder"):
        import_released(ImportRequest(folder, base=nowhere, encoder=nowhere, output=tmp_path / "out"))


@pytest.mark.parametrize("stem", ["model.mm_projector.", "model.modal_projectors.vision."])
def test_a_donor_of_a_projector_alone_is_a_llava_with_the_bases_language_model(parts, tmp_path, stem):
    released = tmp_path / "released"
    released.mkdir()
    native = tiny_model("llava")
    linears = {"0": native.model.multi_modal_projector.linear_1, "2": native.model.multi_modal_projector.linear_2}
    tensors = {
        f"{stem}{place}.{kind}": getattr(linear, kind).detach()
        for place, linear in linears.items()
        for kind in ("weight", "bias")
    }
    save_file(tensors, released / "mm_projector.safetensors")
    (released / "config.json").write_text(json.dumps({"mm_vision_select_layer": -1}))
    folder = imported(parts, released, tmp_path / "donor")
    assert verify(folder).ok
    register()
    model, processor = (
        ComposedForConditionalGeneration.from_pretrained(folder), ComposedProcessor.from_pretrained(folder)
    )  # fmt: skip
    base, state = load_file(parts / "base/model.safetensors"), native.state_dict()
    for name, tensor in base.items():
        target = state[name if name.startswith("lm_head") else name.replace("model.", "model.language_model.", 1)]
        target[: len(tensor)] = tensor
    native.load_state_dict(state)
    native.config.image_token_id = native.model.config.image_token_id = IMAGE_ID
    inputs = processor(text="USER : <image> what is this ASSISTANT :", images=picture())
    pixels = {key.split("__")[1]: value for key, value in inputs.items() if "__" in key}
    with torch.no_grad():
        ours = model(**inputs).logits
        theirs = native(**{key: inputs[key] for key in ("input_ids", "attention_mask")}, **pixels).logits
    torch.testing.assert_close(ours, theirs[..., : ours.shape[-1]], rtol=1e-4, atol=1e-4)


def test_a_projector_as_a_pickle_says_how_to_convert_it(tmp_path):
    (tmp_path / "mm_projector.bin").write_bytes(b"")
    nowhere = ModelRef("local", str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match=r"mm_projector\.bin") as caught:
        import_released(ImportRequest(tmp_path, base=nowhere, encoder=nowhere, output=tmp_path / "out"))
    assert "'mm_projector.safetensors'" in caught.value.hint


def test_the_tokenizer_is_the_bases(donor):
    _, folder = donor
    ours = ComposedProcessor.from_pretrained(folder).tokenizer
    plain = tokenizer()
    assert {ours.get_vocab()[word] == index for word, index in plain.get_vocab().items()} == {True}


def typed(arguments: list, monkeypatch, folder: Path) -> int:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["mcompose", "import", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_command_writes_the_same_checkpoint_and_says_what_is_in_it(parts, donor, tmp_path, monkeypatch, capsys):
    released, folder = donor
    refs = ["--base", parts / "base", "--encoder", f"local:{parts / 'encoder'}"]
    assert typed([released, *refs, "-o", "donor", "--json"], monkeypatch, tmp_path) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["output"], report["modalities"]) == ("donor", ["image"])
    sizes = [load_file(parts / "base/model.safetensors")[f"model.{linear}.weight"].shape for linear in LINEARS]
    factors = {"tensors": 2 * len(LINEARS), "parameters": sum(RANK * sum(size) for size in sizes)}
    assert report["parts"]["group:image"] == report["parts"]["group:text"] == factors
    for name in ("model.safetensors", "config.json", "mcompose/ledger.json"):
        assert (tmp_path / "donor" / name).read_bytes() == (folder / name).read_bytes(), name
    # Alpha on the command line is the factor that groups are multiplied by.
    assert typed([released, *refs, "-o", "louder", "--alpha", "9"], monkeypatch, tmp_path) == 0
    assert "group:image" in capsys.readouterr().out
    table = json.loads((tmp_path / "louder/config.json").read_text())
    assert {spec["scale"] for spec in table["routed_groups"].values()} == {9 / RANK}
    assert typed(["nowhere", *refs, "-o", "x"], monkeypatch, tmp_path) == 2
    assert "The folder 'nowhere' does not exist" in capsys.readouterr().err


def test_the_commands_help_loads_no_heavy_library():
    code = (
        "import sys; sys.argv = ['mcompose', 'import', '--help']\n"
        "from mcompose.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'numpy', 'safetensors'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--encoder" in done.stdout
