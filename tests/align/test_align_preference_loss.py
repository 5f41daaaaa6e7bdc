"""The loss of pairs of answers: by hand, and beside TRL's on the same network."""

import math
import warnings
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mcompose.align.data.samples import Sample
from mcompose.align.preference import (
    ANSWER_LABELS,
    PreferenceLoss,
    answer_log_probs,
    pair_key,
    reference_log_probs,
    sigmoid_losses,
)
from mcompose.errors import NumericsError

BETA = 0.3


def test_the_loss_by_hand():
    """One pair with a margin of 0.3 * ((-1 + 3) - (-5 + 4)) = 0.9, one with none."""
    losses_P, margins_P = sigmoid_losses(
        torch.tensor([-1.0, -2.0]),
        torch.tensor([-5.0, -7.0]),
        reference_2P=torch.tensor([[-3.0, -2.0], [-4.0, -7.0]]),
        beta=BETA,
    )
    assert margins_P.tolist() == pytest.approx([0.9, 0.0])
    assert losses_P.tolist() == pytest.approx([math.log(1 + math.exp(-0.9)), math.log(2)])


def test_log_probabilities_are_of_the_next_token_and_of_what_is_learnt():
    """Two words of equal logits have probability 1/2; a third, log(2) higher than each of them, the same."""
    logits_BLV = torch.zeros(2, 3, 2)
    logits_BLV[1, 1] = torch.tensor([0.0, math.log(3)])
    labels_BL = torch.tensor([[-100, 1, 0], [-100, -100, 1]])
    found = answer_log_probs(logits_BLV, labels_BL)
    assert found.tolist() == pytest.approx([2 * math.log(0.5), math.log(0.75)])
    assert answer_log_probs(logits_BLV, torch.full((2, 3), -100)).tolist() == [0.0, 0.0]


def tiny(seed):
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        model = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2, generator=generator)
    return model


def tiny_batch():
    generator = torch.Generator().manual_seed(7)
    ids_BL = torch.randint(1, 40, (6, 11), generator=generator)
    mask_BL = torch.ones_like(ids_BL)
    mask_BL[1, 8:] = mask_BL[5, 6:] = 0
    ids_BL = ids_BL * mask_BL
    answers_BL = mask_BL.clone()
    answers_BL[:, :4] = 0
    return ids_BL, mask_BL, answers_BL


def trl_loss(model, reference, ids_BL, mask_BL, answers_BL):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trl = pytest.importorskip("trl", reason="TRL is what the loss is compared with")
        from trl.trainer.utils import add_fused_lm_head
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    add_fused_lm_head(reference)
    gather = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x, device=torch.device("cpu"))
    trainer = SimpleNamespace(
        model=model, ref_model=reference, accelerator=gather, aux_loss_enabled=False, ld_alpha=None, beta=BETA,
        precompute_ref_logps=False, f_divergence_type="reverse_kl", loss_types=["sigmoid"], loss_weights=[1.0],
        use_weighting=False, args=SimpleNamespace(gradient_checkpointing_kwargs=None), label_smoothing=0.0,
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    inputs = {"input_ids": ids_BL, "attention_mask": mask_BL, "completion_mask": answers_BL}
    loss = trl.DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)
    return loss, trainer._metrics["eval"]["rewards/margins"][0]


def test_loss_and_gradient_are_trls():
    ids_BL, mask_BL, answers_BL = tiny_batch()
    policy, start = tiny(1), tiny(2)
    samples = [Sample((), None, "d", number) for number in range(3)]
    batch = {"input_ids": ids_BL, "attention_mask": mask_BL, ANSWER_LABELS: ids_BL.masked_fill(answers_BL == 0, -100)}
    reference = reference_log_probs(start, [(samples, batch)])
    rows = [reference[pair_key(sample)] for sample in samples]
    loss = PreferenceLoss(BETA)
    mine, _ = loss(policy, {**batch, "reference_log_probs": torch.tensor(rows).T})
    mine.backward()
    other = tiny(1)
    theirs, margin = trl_loss(other, start, ids_BL, mask_BL, answers_BL)
    theirs.backward()
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert loss.take_totals()[0] / 3 == pytest.approx(margin, rel=1e-4)
    for (name, one), two in zip(policy.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(one.grad, two.grad, rtol=1e-3, atol=1e-6), name


def test_a_reference_leaves_the_model_as_it_was_and_must_be_finite():
    ids_BL, mask_BL, answers_BL = tiny_batch()
    model = tiny(1).train()
    model.model.norm.eval()
    samples = [Sample((), None, "d", number, place=f"d:{number}") for number in range(3)]
    batch = {"input_ids": ids_BL, "attention_mask": mask_BL, ANSWER_LABELS: ids_BL.masked_fill(answers_BL == 0, -100)}
    assert len(reference_log_probs(model, [(samples, batch)])) == 3
    assert model.training
    assert not model.model.norm.training
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(NumericsError, match="d:0"):
        reference_log_probs(model, [(samples, batch)])
