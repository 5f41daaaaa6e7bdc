"""Cached encoder outputs: the loss and gradients of the encoder itself, without running it."""

import pytest
import torch
from align_data_samples import load_processor, picture, sample
from composed_folders import tiny_tokenizer, write_folder
from tiny_models import tiny_model
from tiny_processors import llava, llava_next

from mcompose.align.data.collator import Collator
from mcompose.align.features.cache import FeatureCache
from mcompose.align.features.store import FeatureStore
from mcompose.errors import RequestError

PROCESSORS = {"llava": llava, "llava_next": llava_next}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for model_type, processor in PROCESSORS.items():
        folder = tmp_path_factory.mktemp(model_type)
        native = tiny_model(model_type)
        write_folder(
            folder, native, {"sees": native}, modalities={"sees": ["image"]}, tokenizer=tiny_tokenizer(),
            processors={"sees": processor()},
        )  # fmt: skip
        made[model_type] = folder
    return made


def load(folder, *, trained=("multi_modal_projector", "image_newline")):
    from align_data_samples import load_model

    model = load_model(folder)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in trained) or "language_model" in name)
    return model, Collator(load_processor(folder), max_length=None, media_keys=True)


def three(folder):
    shown = [{"type": "image", "path": str(picture(folder / f"{n}.png", 40 * n))} for n in range(3)]
    return [
        sample(("user", shown[0], "\nwhat is it ?"), ("assistant", "a cat")),
        sample(("user", "what is the dog ?"), ("assistant", "here")),
        sample(("user", shown[1], " and ", shown[2]), ("assistant", "two two . ,")),
        sample(("user", shown[0], " and ", shown[0]), ("assistant", "b")),
    ]


def counted(model):
    """Counts calls of the patch embedding deep in the encoder, which a playback never reaches."""
    calls = []
    tower = model.model.towers["sees"].vision_tower
    first = next(module for module in tower.modules() if isinstance(module, torch.nn.Conv2d))
    first.register_forward_hook(lambda *_: calls.append(1))
    return calls


def step(model, batch):
    model.zero_grad()
    out = model(**{name: value for name, value in batch.items() if name != "domains"}, use_cache=False)
    out.loss.backward()
    return out.loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("model_type", PROCESSORS)
def test_loss_and_gradients_are_the_encoders_own_and_it_is_not_run(folders, tmp_path, model_type):
    model, collator = load(folders[model_type])
    samples = three(tmp_path)
    batch = collator(samples)
    assert batch["media_keys"]["image"].shape == (5, 2)
    plain = {name: value for name, value in batch.items() if name != "media_keys"}
    wanted_loss, wanted = step(model, plain)
    cache = FeatureCache(model, collator, store=FeatureStore(tmp_path / "s", max_bytes=10**9))
    with cache:
        report = cache.fill(samples)
        assert (report.items, report.found, report.stored, report.refused, report.uncached) == (3, 0, 3, 0, {})
        calls = counted(model)
        loss, found = step(model, batch)
        assert calls == []
        torch.testing.assert_close(loss, wanted_loss, rtol=1e-5, atol=1e-6)
        assert found.keys() == wanted.keys()
        assert any("multi_modal_projector" in name for name in found)
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6)
    step(model, plain)
    assert len(calls) == 1


def test_only_what_features_depend_on_is_stored(folders, tmp_path):
    model, collator = load(folders["llava"])
    cache = FeatureCache(model, collator, store=FeatureStore(tmp_path / "s", max_bytes=10**9))
    with cache:
        cache.fill(three(tmp_path))
    (file, *others) = sorted((tmp_path / "s").rglob("*.safetensors"))
    assert len(others) == 2
    from safetensors.torch import load_file

    ((name, tensor),) = load_file(file).items()
    assert name.startswith("vision_tower/")
    assert tensor.shape == (1, 5, 32)  # a class token and four patches, of one hidden state


def test_with_a_frozen_projector_its_output_is_what_is_stored(folders, tmp_path):
    from safetensors.torch import load_file

    model, collator = load(folders["llava"], trained=())
    samples = three(tmp_path)
    with FeatureCache(model, collator, store=FeatureStore(tmp_path / "s", max_bytes=10**9)) as cache:
        cache.fill(samples)
        calls = counted(model)
        batch = collator(samples)
        loss, _ = step(model, batch)
        # The encoder itself is asked, and answers with nothing.
        assert calls == []
    wanted, _ = step(model, {name: value for name, value in batch.items() if name != "media_keys"})
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    file = next(iter(sorted((tmp_path / "s").rglob("*.safetensors"))))
    assert [name.partition("/")[0] for name in load_file(file)] == ["multi_modal_projector"]


def test_a_second_run_finds_what_the_first_stored_and_another_encoder_does_not(folders, tmp_path):
    samples = three(tmp_path)
    store = FeatureStore(tmp_path / "s", max_bytes=10**9)
    for changed, found in ((False, 0), (False, 3), (True, 0)):
        model, collator = load(folders["llava"])
        if changed:
            with torch.no_grad():
                next(model.model.towers["sees"].vision_tower.parameters()).add_(1e-3)
        with FeatureCache(model, collator, store=store) as cache:
            assert cache.fill(samples).found == found


def test_a_changed_file_is_another_item(folders, tmp_path):
    model, collator = load(folders["llava"])
    samples = three(tmp_path)
    with FeatureCache(model, collator, store=FeatureStore(tmp_path / "s", max_bytes=10**9)) as cache:
        cache.fill(samples)
        picture(tmp_path / "0.png", 77)
        calls = counted(model)
        step(model, collator(samples[:1]))
        assert len(calls) == 1
        assert cache.fill(samples).stored == 1


def test_the_bound_holds_and_what_has_no_room_is_encoded(folders, tmp_path):
    model, collator = load(folders["llava"])
    samples = three(tmp_path)
    store = FeatureStore(tmp_path / "s", max_bytes=2000)  # an item has 640 bytes and its header
    with FeatureCache(model, collator, store=store) as cache:
        report = cache.fill(samples)
        assert report.stored + report.refused == 3
        assert report.refused > 0
        assert sum(path.stat().st_size for path in (tmp_path / "s").rglob("*.safetensors")) <= 2000
        loss, _ = step(model, collator(samples))
    wanted, _ = step(model, {k: v for k, v in collator(samples).items() if k != "media_keys"})
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)


def test_a_damaged_file_is_encoded_again(folders, tmp_path):
    model, collator = load(folders["llava"])
    samples = three(tmp_path)
    with FeatureCache(model, collator, store=FeatureStore(tmp_path / "s", max_bytes=10**9)) as cache:
        cache.fill(samples)
        for file in (tmp_path / "s").rglob("*.safetensors"):
            file.write_bytes(file.read_bytes()[:50])
        calls = counted(model)
        step(model, collator(samples))
        assert len(calls) == 1
        assert cache.fill(samples).stored > 0


def test_processes_share_the_filling(folders, tmp_path):
    samples = three(tmp_path)
    counts = []
    for number in (0, 1):
        model, collator = load(folders["llava"])
        with FeatureCache(model, collator, store=FeatureStore(tmp_path / "s", max_bytes=10**9)) as cache:
            counts.append(cache.fill(samples, share=(number, 2)).stored)
    assert counts == [2, 1]


def test_encoders_that_mix_items_are_found_out(folders, tmp_path):
    model, collator = load(folders["llava"])
    tower = model.model.towers["sees"].vision_tower
    own = tower.forward

    def mixing(pixel_values, **kwargs):
        return own(pixel_values - pixel_values.mean(dim=0), **kwargs)

    tower.forward = mixing
    with FeatureCache(model, collator, store=FeatureStore(tmp_path / "s", max_bytes=10**9)) as cache:
        report = cache.fill(three(tmp_path))
        assert report.uncached == {"image": "its encoder does not treat items independently"}


def test_what_cannot_be_cached_is_refused(folders, tmp_path):
    model, collator = load(folders["llava"])
    store = FeatureStore(tmp_path / "s", max_bytes=1)
    with pytest.raises(RequestError, match="for composed checkpoints only"):
        FeatureCache(tiny_model("llava"), collator, store=store)
    collator.media_keys = False
    with pytest.raises(RequestError, match="must be made with media_keys"):
        FeatureCache(model, collator, store=store)
