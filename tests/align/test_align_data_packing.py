"""Packed batches: rows of several samples give each the logits, the loss and the gradients that it has alone."""

import pytest
import torch
from align_data_samples import load_model, load_processor, picture, sample
from composed_folders import tiny_tokenizer, write_folder
from tiny_models import tiny_model
from tiny_processors import llava

from mcompose.align.data.collator import Collator, can_pack, takes_positions


@pytest.fixture(scope="module")
def sees(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sees")
    native = tiny_model("llava")
    write_folder(
        folder / "c", native, {"sees": native}, modalities={"sees": ["image"]}, tokenizer=tiny_tokenizer(),
        processors={"sees": llava()},
    )  # fmt: skip
    return load_model(folder / "c"), load_processor(folder / "c"), folder


def three(folder):
    shown = [{"type": "image", "path": str(picture(folder / f"{n}.png", 40 * n))} for n in range(3)]
    return [
        sample(("user", shown[0], "\nwhat is it ?"), ("assistant", "a cat")),
        sample(("user", "what is the dog ?"), ("assistant", "here")),
        sample(("user", shown[1], " and ", shown[2]), ("assistant", "two two . ,"), ("user", "a"), ("assistant", "b")),
    ]


def run(model, batch):
    return model(**{name: value for name, value in batch.items() if name != "domains"}, use_cache=False)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_logits_are_those_of_each_sample_alone(sees, attention):
    model, processor, folder = sees
    model.set_attn_implementation(attention)
    samples = three(folder)
    packed = Collator(processor, max_length=99, packing=True)(samples)
    assert "attention_mask" not in packed
    alone = Collator(processor, max_length=99)
    singles = [alone([one]) for one in samples]
    lengths = [one["input_ids"].shape[1] for one in singles]
    assert packed["input_ids"].shape == (1, sum(lengths))
    assert packed["position_ids"][0].tolist() == [n for length in lengths for n in range(length)]
    with torch.no_grad():
        wanted = torch.cat([run(model, one).logits[0] for one in singles])
        torch.testing.assert_close(run(model, packed).logits[0], wanted, rtol=1e-5, atol=1e-5)


def test_packed_loss_and_gradients_are_those_of_the_padded_batch(sees):
    model, processor, folder = sees
    samples = three(folder)
    found = []
    for packing in (True, False):
        model.zero_grad()
        out = run(model, Collator(processor, max_length=99, packing=packing)(samples))
        out.loss.backward()
        found.append(
            (out.loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        )
    (loss, grads), (padded_loss, padded_grads) = found
    torch.testing.assert_close(loss, padded_loss, rtol=1e-5, atol=1e-6)
    assert grads.keys() == padded_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, padded_grads[name], rtol=1e-4, atol=1e-6)


def test_no_sample_learns_its_first_token_from_the_one_before(sees):
    _, processor, folder = sees
    batch = Collator(processor, max_length=99, packing=True, mask_answers=False)(three(folder))
    firsts = batch["position_ids"] == 0
    assert firsts.sum() == 3
    assert (batch["labels"][firsts] == -100).all()


def test_explicit_positions_change_nothing_in_a_padded_batch(sees):
    model, processor, folder = sees
    with torch.no_grad():
        logits = [
            run(model, Collator(processor, max_length=99, positions=positions)(three(folder))).logits
            for positions in (True, False)
        ]
    real = Collator(processor, max_length=99)(three(folder))["attention_mask"].bool()
    assert torch.equal(logits[0][real], logits[1][real])


def test_models_that_count_or_look_another_way_are_told_apart(sees):
    from composed_models import one_source

    assert can_pack(sees[0])
    assert takes_positions(sees[0])
    for model_type, positions, packs in (
        ("qwen2_vl", False, False),
        ("paligemma", False, False),
        ("gemma3", True, False),
    ):
        _, composed, _, _ = one_source(model_type)
        assert (takes_positions(composed), can_pack(composed)) == (positions, packs), model_type
    assert not takes_positions(tiny_model("qwen2_vl"))
    assert not can_pack(tiny_model("llava"))  # natives are not promised anything
