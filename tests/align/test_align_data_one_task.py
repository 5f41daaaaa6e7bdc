"""Quotas and steps of one task: counts by hand, orders that depend on seed and position alone."""

from collections import Counter

import numpy as np
import pytest
from align_data_samples import llava_record, write_lines

from mcompose.align.data.batching import TokenRates
from mcompose.align.data.mixture import open_mixture
from mcompose.align.data.one_task import one_task_places
from mcompose.align.data.order import Ordered
from mcompose.align.data.shares import within_quotas
from mcompose.errors import RequestError
from mcompose.recipe.align.datasets import DatasetSpec


def dataset(folder, name, count, **more):
    write_lines(folder / name, [llava_record("q", f"{name}:{n}" + " word" * (n % 7)) for n in range(count)])
    return DatasetSpec(path=name, **more)


def plain(folder, name, count, task="qa", **more):
    write_lines(folder / name, [{"question": "q", "answer": f"{name}:{n}"} for n in range(count)])
    return DatasetSpec(path=name, task=task, **more)


def epoch_of(mixture, epoch=0):
    samples = (mixture.sample_at(epoch, index) for index in range(len(mixture)))
    return [(sample.dataset, sample.index) for sample in samples]


@pytest.mark.parametrize(
    ("proportions", "total", "quotas", "counts"),
    [
        ([0.5, 0.3, 0.2], 10, [None, None, None], [5, 3, 2]),
        ([0.5, 0.3, 0.2], 10, [2, None, None], [2, 5, 3]),  # 8 left, 3 : 2 -> 4.8 and 3.2
        ([0.8, 0.1, 0.1], 20, [4, 5, None], [4, 5, 11]),  # 16 left -> 8 each; 5 of them, 11 for the last
        ([0.5, 0.5], 10, [3, 4], [3, 4]),  # no more can be had
        ([0.9, 0.1], 10, [9, 1], [9, 1]),
    ],
)
def test_quotas_by_hand(proportions, total, quotas, counts):
    assert within_quotas(np.array(proportions), total=total, quotas=quotas).tolist() == counts


def test_a_quota_limits_an_epoch_and_the_next_one_takes_others(tmp_path):
    specs = [dataset(tmp_path, "a.jsonl", 30, quota=10), dataset(tmp_path, "b.jsonl", 6)]
    mixture = open_mixture(specs, folder=tmp_path, seed=0)
    assert (len(mixture), mixture.shares.tolist()) == (16, [10, 6])
    epochs = [epoch_of(mixture, epoch) for epoch in range(3)]
    large = [index for epoch in epochs for name, index in epoch if name == "a.jsonl"]
    assert sorted(large) == list(range(30))
    assert all(sorted(i for name, i in epoch if name == "b.jsonl") == list(range(6)) for epoch in epochs)
    assert [row.drawn for row in mixture.report()] == [10, 6]


def test_quotas_beside_weights_and_temperature(tmp_path):
    weighted = [dataset(tmp_path, "a.jsonl", 36, weight=3, quota=20), dataset(tmp_path, "b.jsonl", 20, weight=1)]
    # 20 + 20 samples, 3 : 1 would be 30 and 10; what the first may not give, the second does.
    assert open_mixture(weighted, folder=tmp_path, seed=0).shares.tolist() == [20, 20]
    heated = [dataset(tmp_path, "a.jsonl", 100, quota=36), dataset(tmp_path, "b.jsonl", 4)]
    # 36^(1/2) : 4^(1/2) = 6 : 2, of 40.
    assert open_mixture(heated, folder=tmp_path, seed=0, temperature=2.0).shares.tolist() == [30, 10]


def test_quotas_have_no_meaning_beside_streams(tmp_path):
    specs = [
        dataset(tmp_path, "a.jsonl", 3, weight=1, streaming=True),
        dataset(tmp_path, "b.jsonl", 3, weight=1, quota=2),
    ]
    with pytest.raises(RequestError, match=r"The 'quota' of b\.jsonl has no effect beside a streamed dataset"):
        open_mixture(specs, folder=tmp_path, seed=0)


@pytest.fixture
def mixture(tmp_path):
    specs = [
        plain(tmp_path, "a.jsonl", 21),
        plain(tmp_path, "b.jsonl", 10, task="vqa"),
        plain(tmp_path, "c.jsonl", 9),  # a second data set of the first task
        dataset(tmp_path, "d.jsonl", 5),  # without a task: a task of its own
    ]
    return open_mixture(specs, folder=tmp_path, seed=4)


def test_a_dataset_without_a_task_is_its_own(mixture):
    assert mixture.tasks == ("qa", "vqa", "d.jsonl")
    for epoch in (0, 3):
        named = [mixture.tasks[number] for number in mixture.tasks_of(epoch)]
        assert named == [mixture.sample_at(epoch, index).task for index in range(len(mixture))]


def test_every_step_has_one_task_and_nothing_is_lost_between_epochs(mixture):
    places = one_task_places(mixture, steps=44, batch_size=4)
    samples = [Ordered(mixture, 176, places=places)[position][1] for position in range(176)]
    steps = [samples[start : start + 4] for start in range(0, 176, 4)]
    assert all(len({sample.task for sample in step}) == 1 for step in steps)
    assert len(set(places)) == 176
    # 44 steps are nearly four epochs of 45 samples: 30, 10 and 5 of them an epoch.
    assert max(places) < 4 * 45
    missing = sorted(set(range(4 * 45)) - set(places))
    assert len(missing) == 4  # at most three wait in each of the three bins
    by_task = Counter(step[0].task for step in steps)
    assert abs(by_task["qa"] - 30) <= 1
    assert abs(by_task["vqa"] - 10) <= 1
    assert abs(by_task["d.jsonl"] - 5) <= 1
    # Within a task, the order is the mixture's.
    for group in mixture.tasks:
        own = [place for place, sample in zip(places, samples, strict=True) if sample.task == group]
        assert own == sorted(own)


def test_the_order_depends_on_the_seed_alone_and_a_longer_stage_begins_the_same(mixture, tmp_path):
    places = one_task_places(mixture, steps=20, batch_size=4)
    assert places == one_task_places(open_mixture(mixture.specs, folder=tmp_path, seed=4), steps=20, batch_size=4)
    assert places != one_task_places(open_mixture(mixture.specs, folder=tmp_path, seed=5), steps=20, batch_size=4)
    assert one_task_places(mixture, steps=30, batch_size=4)[:80] == places
    assert mixture.epoch == 0


def test_steps_of_one_task_and_of_similar_length(mixture):
    rates = TokenRates(1.0, {})
    lengths = [length for epoch in range(4) for length in mixture.lengths(epoch=epoch, characters_per_token=1.0)]

    def spread(places):
        steps = [[lengths[place] for place in places[start : start + 4]] for start in range(0, len(places), 4)]
        return sum(max(step) - min(step) for step in steps)

    loose = one_task_places(mixture, steps=40, batch_size=4)
    tight = one_task_places(mixture, steps=40, batch_size=4, rates=rates)
    assert tight == one_task_places(mixture, steps=40, batch_size=4, rates=rates)
    assert sorted(tight) == sorted(loose)
    assert spread(tight) < spread(loose)
    for start in range(0, 160, 4):
        groups = [mixture.sample_at(*divmod(place, len(mixture))).task for place in tight[start : start + 4]]
        assert len(set(groups)) == 1


def test_a_task_that_never_comes_is_named(mixture):
    with pytest.raises(RequestError) as caught:
        one_task_places(mixture, steps=3, batch_size=16)
    assert caught.value.message == ("The samples of 'd.jsonl' fill no step of 16 in the 3 steps of this stage.")
