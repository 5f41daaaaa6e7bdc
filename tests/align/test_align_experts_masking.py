"""Masks of the generalist's tokens: counts by hand, which samples, units, schedules, and what addresses a draw."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mcompose.align.data.masks import Masked, mask_generator
from mcompose.align.experts.gscm import Gscm, TileForm, hide, ratio_schedule, units_of, unmask
from mcompose.recipe import Masking

IMAGE, TEXT, EXPERT, SOUND = 7, 1, 9, 8
TYPES = {IMAGE: 1, TEXT: 0, EXPERT: 5, SOUND: 3}


def batch_of(*rows, domains, positions=None):
    """Rows as lists of ids, padded with 0."""
    longest = max(map(len, rows))
    ids_BL = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask_BL = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    types_BL = torch.tensor([[TYPES.get(index, 0) for index in row] for row in ids_BL.tolist()])
    labels_BL = ids_BL.masked_fill(ids_BL != TEXT, -100)
    return {
        "input_ids": ids_BL, "attention_mask": mask_BL, "mm_token_type_ids": types_BL, "labels": labels_BL,
        "position_ids": (mask_BL.cumsum(-1) - 1).clamp(min=0),
        "domains": torch.tensor(domains), "positions": positions or list(range(len(rows))),
    }  # fmt: skip


def gscm(domains=((IMAGE,),), *, seed=0, tiles=None, steps=10, batch=1, **spec):
    masking = Masking(**spec)
    return Gscm(masking, seed, ratio_schedule(masking, steps=steps, batch=batch), domains, tiles or {})


def hidden(batch):
    return (batch.get("padding_mask", batch["attention_mask"]) - batch["attention_mask"]).bool()


CHART = [TEXT, *[IMAGE] * 10, TEXT, *[EXPERT] * 4, TEXT, TEXT]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 10, 64, 256, 576, 1536])
def test_exactly_the_floor_of_the_share_is_hidden(count):
    """floor(0.3 n), written out for sizes that the published models have."""
    wanted = {1: 0, 2: 0, 3: 0, 4: 1, 7: 2, 10: 3, 64: 19, 256: 76, 576: 172, 1536: 460}[count]
    row = [TEXT, *[IMAGE] * count, EXPERT, TEXT]
    made = gscm()(batch_of(row, domains=[0]))
    assert int(hidden(made).sum()) == wanted
    assert not hidden(made)[torch.tensor([row]) != IMAGE].any()


def test_a_ratio_that_floats_round_down_is_counted_as_written():
    made = gscm(ratio=0.29)(batch_of([*[IMAGE] * 100, EXPERT], domains=[0]))  # 0.29 * 100 = 28.999999999999996
    assert int(hidden(made).sum()) == 29


def test_nothing_but_the_mask_is_touched():
    before = batch_of(CHART, CHART[:-1], domains=[0, 0])
    kept = {name: value.clone() for name, value in before.items() if torch.is_tensor(value)}
    after = gscm()(before)
    assert torch.equal(after["padding_mask"], kept["attention_mask"])
    assert after["hidden"] == "mask"
    for name in ("input_ids", "labels", "position_ids", "mm_token_type_ids"):
        assert torch.equal(after[name], kept[name])
    assert torch.equal(before["attention_mask"], kept["attention_mask"])  # the batch that came is left alone
    assert (after["attention_mask"] <= kept["attention_mask"]).all()


def test_only_samples_of_domains_with_experts_are_masked():
    """Domain 0 has an image expert, 1 has none, 2 has one for sounds, -1 is no domain."""
    rows = [[TEXT, *[IMAGE] * 10, *[SOUND] * 10, TEXT]] * 4
    made = gscm(((IMAGE,), (), (SOUND,)))(batch_of(*rows, domains=[0, 1, 2, -1]))
    counts = [
        (int(h[i == IMAGE].sum()), int(h[i == SOUND].sum()))
        for h, i in zip(hidden(made), made["input_ids"], strict=True)
    ]
    assert counts == [(3, 0), (0, 0), (0, 3), (0, 0)]
    alone = batch_of(rows[0], domains=[1])
    assert gscm(((IMAGE,), ()))(alone) is alone


def test_a_sample_without_an_experts_tokens_can_stay_whole():
    rows = [[TEXT, *[IMAGE] * 10, TEXT], [TEXT, *[IMAGE] * 10, TEXT]]
    batch = batch_of(*rows, domains=[0, 0])
    batch["mm_token_type_ids"][1, -1] = TYPES[EXPERT]
    assert hidden(replace(gscm(), served=True)(batch)).sum(-1).tolist() == [0, 3]
    assert hidden(gscm()(batch)).sum(-1).tolist() == [3, 3]


def test_a_draw_is_addressed_by_seed_and_position_only():
    def drawn(position, *, seed=0, beside=()):
        rows = [CHART, *([[TEXT, *[IMAGE] * 40]] * len(beside))]
        made = gscm(seed=seed)(batch_of(*rows, domains=[0] * len(rows), positions=[position, *beside]))
        return tuple(torch.nonzero(hidden(made)[0])[:, 0].tolist())

    assert drawn(5) == drawn(5) == drawn(5, beside=(6, 7))
    assert len({drawn(position) for position in range(50)}) > 30
    assert drawn(5) != drawn(5, seed=1)
    wanted = sorted(int(p) + 1 for p in mask_generator(0, 5, purpose="gscm").choice(10, size=3, replace=False))
    assert list(drawn(5)) == wanted


def test_every_token_is_as_likely_as_any_other():
    made = gscm()(batch_of(*[CHART] * 4000, domains=[0] * 4000))
    share_L = hidden(made).float().mean(0)[1:11]
    assert float((share_L - 0.3).abs().max()) < 5 * math.sqrt(0.3 * 0.7 / 4000)


def test_bernoulli_has_its_mean_and_spread():
    made = gscm(count="bernoulli")(batch_of(*[CHART] * 4000, domains=[0] * 4000))
    counts_B = hidden(made).sum(-1).float()
    assert abs(float(counts_B.mean()) - 3.0) < 5 * math.sqrt(10 * 0.21 / 4000)
    assert abs(float(counts_B.var()) - 10 * 0.21) < 0.25
    assert counts_B.unique().numel() > 5


def test_at_ratio_one_a_sample_is_hidden_whole_or_not_at_all():
    made = gscm(ratio=1.0)(batch_of(*[CHART] * 2000, domains=[0] * 2000))
    counts_B = hidden(made).sum(-1)
    assert set(counts_B.tolist()) == {0, 10}
    assert abs(float((counts_B == 10).float().mean()) - 0.8) < 5 * math.sqrt(0.16 / 2000)
    always = gscm(ratio=1.0, whole=1.0)(batch_of(*[CHART] * 50, domains=[0] * 50))
    assert (hidden(always).sum(-1) == 10).all()


def test_whole_samples():
    made = gscm(unit="sample", ratio=0.25)(batch_of(*[CHART] * 2000, domains=[0] * 2000))
    counts_B = hidden(made).sum(-1)
    assert set(counts_B.tolist()) == {0, 10}
    assert abs(float((counts_B == 10).float().mean()) - 0.25) < 5 * math.sqrt(0.1875 / 2000)


def test_tiles_of_a_fixed_size_are_hidden_whole():
    """Two images of 4 + 1 and 1 tiles of 3 tokens; the last of several is the thumbnail."""
    row = [TEXT, *[IMAGE] * 15, TEXT, EXPERT, *[IMAGE] * 3, EXPERT, TEXT]
    batch = batch_of(*[row] * 300, domains=[0] * 300)
    form = {IMAGE: TileForm(3, "last")}
    made = gscm(unit="tile", ratio=0.5, tiles=form)(batch)
    tiles_BN3 = torch.cat([hidden(made)[:, 1:16], hidden(made)[:, 18:21]], dim=1).reshape(300, 6, 3)
    assert (tiles_BN3.all(-1) == tiles_BN3.any(-1)).all()
    assert (tiles_BN3.any(-1).sum(-1) == 3).all()
    made = gscm(unit="tile", ratio=0.5, tiles=form, include_thumbnail=False)(batch)
    tiles_BN = torch.cat([hidden(made)[:, 1:16], hidden(made)[:, 18:21]], dim=1).reshape(300, 6, 3).any(-1)
    assert not tiles_BN[:, 4].any()
    assert (tiles_BN.sum(-1) == 2).all()  # floor(0.5 * 5)
    assert tiles_BN[:, 5].any()  # an only tile is no thumbnail


def test_tiles_that_are_runs_are_images_between_experts():
    """Marks between tiles; an image ends with its expert's block. The thumbnail comes first."""
    row = [IMAGE, IMAGE, TEXT, IMAGE, IMAGE, IMAGE, TEXT, IMAGE, EXPERT, TEXT, IMAGE, IMAGE, EXPERT]
    general_L, ends_L = np.array(row) == IMAGE, np.array(row) == EXPERT
    units_L, count = units_of(general_L, ends_L=ends_L, form=TileForm(None, "first"), unit="tile", thumbnail=False)
    assert count == 3
    assert units_L.tolist() == [-1, -1, -1, 0, 0, 0, -1, 1, -1, -1, 2, 2, -1]
    units_L, count = units_of(general_L, ends_L=ends_L, form=TileForm(None, "first"), unit="token", thumbnail=False)
    assert (units_L.tolist(), count) == ([-1, -1, -1, 0, 1, 2, -1, 3, -1, -1, 4, 5, -1], 6)
    units_L, count = units_of(general_L, ends_L=ends_L, form=TileForm(), unit="token", thumbnail=True)
    assert count == 8


def test_the_ratio_rises_as_it_says():
    linear = ratio_schedule(Masking(schedule="linear", ramp=4), steps=10, batch=2)
    assert [round(linear(2 * step), 6) for step in range(6)] == [0.06, 0.12, 0.18, 0.24, 0.3, 0.3]
    assert linear(1) == linear(0)  # one ratio for a step
    cosine = ratio_schedule(Masking(schedule="cosine", ramp=0.4), steps=10, batch=1)
    assert [round(cosine(step), 6) for step in range(5)] == [
        round(0.15 * (1 - math.cos(math.pi * (step + 1) / 5)), 6) for step in range(4)
    ] + [0.3]
    assert cosine(1) < linear(2) < linear(4) < cosine(3)
    constant = ratio_schedule(Masking(), steps=10, batch=1)
    assert {constant(step) for step in range(10)} == {0.3}
    rising = gscm(ratio=1.0, schedule="linear", ramp=1, steps=1000)  # half of 0.8 at step 0
    first = [hidden(Gscm(rising.spec, seed, rising.ratio_at, ((IMAGE,),), {})(batch_of(CHART, domains=[0]))).any()
             for seed in range(400)]  # fmt: skip
    assert abs(sum(map(bool, first)) / 400 - 0.4) < 0.13


@pytest.mark.parametrize("mechanism", ["mask", "drop", "learned"])
def test_evaluation_sees_everything(mechanism):
    batch = batch_of(CHART, domains=[0])
    made = gscm(mechanism=mechanism)(batch)
    assert made["hidden"] == mechanism
    again = unmask(made)
    assert again.keys() == batch.keys()
    assert torch.equal(again["attention_mask"], batch["attention_mask"])
    assert unmask(batch) is batch
    assert hide(batch, torch.zeros_like(batch["input_ids"], dtype=torch.bool), mechanism=mechanism) is batch


def test_tokens_are_counted_before_they_are_hidden():
    batches = Masked(lambda samples, positions: batch_of(*samples, domains=[0] * len(samples)), [gscm()])
    made = batches([(4, CHART), (9, CHART)])
    assert made["tokens"] == 2 * len(CHART)
    assert int(made["attention_mask"].sum()) == made["tokens"] - 6
    assert "domains" not in made
