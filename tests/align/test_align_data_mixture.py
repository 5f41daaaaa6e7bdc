"""Mixtures: proportions by hand, and the same samples for any number of workers, epochs and streams."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
from align_data_samples import llava_record, picture, write_lines
from torch.utils.data import DataLoader

from mcompose.align.data.batching import MixtureSampler, TokenRates, grouped_places
from mcompose.align.data.mixture import Mixture, open_mixture
from mcompose.align.data.shares import apportion, draw, proportions
from mcompose.align.data.streams import StreamMixture
from mcompose.errors import RequestError
from mcompose.recipe.align.datasets import DatasetSpec


def dataset(folder, name, count, **more):
    write_lines(folder / name, [llava_record("q", f"{name}:{n}" + " word" * (n % 7)) for n in range(count)])
    return DatasetSpec(path=name, **more)


def name_of(sample):
    return sample.dataset, sample.index


names_of = partial(map, name_of)


def collate(samples):
    return [name_of(sample) for sample in samples]


def epoch_of(mixture, epoch=0):
    return [name_of(mixture.sample_at(epoch, index)) for index in range(len(mixture))]


def test_temperature_by_hand():
    # 9 and 1: 9^(1/2) = 3, so 3/4 and 1/4; as they are, 9/10 and 1/10.
    np.testing.assert_allclose(proportions([9, 1], temperature=2.0), [0.75, 0.25])
    np.testing.assert_allclose(proportions([9, 1]), [0.9, 0.1])
    # 8, 1, 27 with T = 3: 2, 1, 3 of 6.
    np.testing.assert_allclose(proportions([8, 1, 27], temperature=3.0), [2 / 6, 1 / 6, 3 / 6])
    np.testing.assert_allclose(proportions([1e-300, 1e300], temperature=1e9), [0.5, 0.5], atol=1e-5)


def test_shares_sum_up_and_round_the_largest_remainders():
    assert apportion(np.array([0.5, 0.3, 0.2]), total=10).tolist() == [5, 3, 2]
    assert apportion(np.array([1 / 3, 1 / 3, 1 / 3]), total=10).tolist() == [4, 3, 3]
    assert apportion(np.array([0.45, 0.35, 0.2]), total=3).tolist() == [1, 1, 1]


def test_a_row_of_shuffles_holds_every_sample_once_a_turn():
    row = [draw(position, size=7, seed=3, dataset=1) for position in range(28)]
    turns = [row[start : start + 7] for start in range(0, 28, 7)]
    assert all(sorted(turn) == list(range(7)) for turn in turns)
    assert len({tuple(turn) for turn in turns}) == 4
    assert row != [draw(position, size=7, seed=3, dataset=2) for position in range(28)]


def test_by_size_an_epoch_holds_every_sample_once(tmp_path):
    specs = [dataset(tmp_path, "a.jsonl", 30), dataset(tmp_path, "b.jsonl", 10)]
    mixture = open_mixture(specs, folder=tmp_path, seed=0)
    everything = sorted([("a.jsonl", n) for n in range(30)] + [("b.jsonl", n) for n in range(10)])
    orders = [epoch_of(mixture, epoch) for epoch in range(3)]
    assert all(sorted(order) == everything for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert orders[0] != epoch_of(open_mixture(specs, folder=tmp_path, seed=1))


def test_weights_are_met_and_no_sample_is_repeated_before_the_others_came(tmp_path):
    specs = [dataset(tmp_path, "a.jsonl", 36, weight=1), dataset(tmp_path, "b.jsonl", 4, weight=3)]
    mixture = open_mixture(specs, folder=tmp_path, seed=0)
    seen = [Counter(epoch_of(mixture, epoch)) for epoch in range(4)]
    for one in seen:
        by_dataset = Counter()
        for (name, _), count in one.items():
            by_dataset[name] += count
        assert by_dataset == {"a.jsonl": 10, "b.jsonl": 30}
        assert {one[("b.jsonl", n)] for n in range(4)} <= {7, 8}
    total = sum(seen, Counter())
    assert {total[("b.jsonl", n)] for n in range(4)} == {30}
    assert {total[("a.jsonl", n)] for n in range(36)} == {1, 2}
    assert [report.drawn for report in mixture.report()] == [10, 30]


def test_temperature_changes_the_epoch_by_hand(tmp_path):
    specs = [dataset(tmp_path, "a.jsonl", 36), dataset(tmp_path, "b.jsonl", 4)]
    # 36^(1/2) : 4^(1/2) = 6 : 2, of 40.
    assert open_mixture(specs, folder=tmp_path, seed=0, temperature=2.0).shares.tolist() == [30, 10]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_are_the_same_for_any_number_of_workers(tmp_path, workers):
    specs = [dataset(tmp_path, "a.jsonl", 23, weight=1), dataset(tmp_path, "b.jsonl", 9, weight=2)]
    mixture = open_mixture(specs, folder=tmp_path, seed=5)
    sampler = MixtureSampler(mixture)
    more = {"persistent_workers": True} if workers else {}
    loader = DataLoader(mixture, batch_size=4, sampler=sampler, collate_fn=collate, num_workers=workers, **more)
    for epoch in (0, 1, 7):
        sampler.set_epoch(epoch)
        got = [name for batch in loader for name in batch]
        assert got == epoch_of(mixture, epoch)


def test_processes_see_disjoint_parts_of_one_order(tmp_path):
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    mixture = open_mixture([dataset(tmp_path, "a.jsonl", 24)], folder=tmp_path, seed=5)
    batches = BatchSampler(MixtureSampler(mixture), batch_size=3, drop_last=False)
    shards = [list(BatchSamplerShard(batches, num_processes=2, process_index=index)) for index in (0, 1)]
    joined = [index for pair in zip(*shards, strict=True) for batch in pair for index in batch]
    assert joined == list(range(24))


def test_lengths_group_and_every_sample_comes_once(tmp_path):
    mixture = open_mixture([dataset(tmp_path, "a.jsonl", 64)], folder=tmp_path, seed=5)
    rates = TokenRates(1.0, {})
    lengths = mixture.lengths(epoch=0, characters_per_token=1.0)
    assert lengths == [mixture.sample_at(0, index).characters() for index in range(64)]
    sampler = MixtureSampler(mixture, batch_size=8, rates=rates)
    order = list(sampler)
    assert sorted(order) == list(range(64))
    assert order == list(MixtureSampler(mixture, batch_size=8, rates=rates))

    def padded(indices):
        return sum(8 * max(lengths[i] for i in indices[start : start + 8]) for start in range(0, 64, 8))

    assert padded(order) < padded(list(range(64)))
    sampler.set_epoch(1)
    assert list(sampler) != order


def test_a_stages_order_goes_on_from_epoch_to_epoch(tmp_path):
    mixture = open_mixture([dataset(tmp_path, "a.jsonl", 16)], folder=tmp_path, seed=5)
    places = grouped_places(mixture, total=40, batch_size=2)
    assert [sorted(places[:16]), sorted(places[16:32])] == [list(range(16)), list(range(16, 32))]
    assert set(places[32:]) < set(range(32, 48))
    assert mixture.epoch == 0
    sampler = MixtureSampler(mixture, batch_size=2)
    sampler.set_epoch(1)
    assert [16 + index for index in sampler] == places[16:32]


def test_media_count_in_lengths(tmp_path):
    picture(tmp_path / "a.png")
    records = [llava_record("<image> abc", "de", image="a.png"), llava_record("abcd", "ef")]
    write_lines(tmp_path / "a.jsonl", records)
    mixture = open_mixture([DatasetSpec(path="a.jsonl")], folder=tmp_path, seed=0)
    lengths = mixture.lengths(characters_per_token=2.0, media_tokens={"image": 4})
    assert {mixture[i].index: lengths[i] for i in range(2)} == {0: 7, 1: 3}  # " abcde" is 6 characters, and 4 tokens


def test_measured_rates_and_lengths_are_the_collators(tmp_path):
    from align_data_samples import composed_folder, load_processor

    from mcompose.align.data.batching import token_rates
    from mcompose.align.data.collator import Collator

    picture(tmp_path / "a.png")
    records = [llava_record("<image>\nwhat is it ?", "a cat " + "b " * n, image="a.png") for n in range(12)]
    write_lines(tmp_path / "a.jsonl", records)
    mixture = open_mixture([DatasetSpec(path="a.jsonl", on_long="skip")], folder=tmp_path, seed=0)
    collator = Collator(load_processor(composed_folder(tmp_path / "c")), max_length=20)
    assert token_rates(mixture, collator).media_tokens == {"image": 4.0}
    # USER:, 4 of the image, 4 words, ASSISTANT:, a cat, n times b, the end.
    wanted = {n: 13 + n - 1 for n in range(12)}
    measured = {mixture[i].index: collator.length(mixture[i]) for i in range(12)}
    assert {n: length - measured[0] for n, length in measured.items()} == {n: w - wanted[0] for n, w in wanted.items()}
    kept = mixture.without_long(collator)
    assert sorted(kept[i].index for i in range(len(kept))) == [n for n in range(12) if measured[n] <= 20]
    assert 0 < len(kept) < 12
    assert kept.report()[0].skipped == {"too long": 12 - len(kept)}
    assert mixture.report()[0].skipped == {}


def test_a_limit_takes_the_first_records(tmp_path):
    mixture = open_mixture([dataset(tmp_path, "a.jsonl", 9, limit=4, domain="d")], folder=tmp_path, seed=0)
    assert sorted(epoch_of(mixture)) == [("a.jsonl", n) for n in range(4)]
    assert mixture.domains == ("d",)
    assert mixture[0].domain == "d"


def test_requests_that_say_nothing_are_refused(tmp_path):
    some = [dataset(tmp_path, "a.jsonl", 2, weight=1), dataset(tmp_path, "b.jsonl", 2)]
    with pytest.raises(RequestError, match=r"b.jsonl has no weight, and others have one"):
        open_mixture(some, folder=tmp_path, seed=0)
    with pytest.raises(RequestError, match="The stage has no data"):
        open_mixture([], folder=tmp_path, seed=0)
    streams = [dataset(tmp_path, "a.jsonl", 2, streaming=True), dataset(tmp_path, "b.jsonl", 2)]
    with pytest.raises(RequestError, match="Streams are mixed by their weights"):
        open_mixture(streams, folder=tmp_path, seed=0)


# streams


def streams(tmp_path):
    specs = [
        dataset(tmp_path, "a.jsonl", 11, weight=3, streaming=True),
        dataset(tmp_path, "b.jsonl", 5, weight=1),
    ]
    mixture = open_mixture(specs, folder=tmp_path, seed=2)
    assert isinstance(mixture, StreamMixture)
    return mixture


def first(iterable, count):
    return [name for name, _ in zip(iterable, range(count), strict=False)]


def test_streams_are_endless_in_order_and_in_proportion(tmp_path):
    row = first(names_of(streams(tmp_path)), 2000)
    for name, size in (("a.jsonl", 11), ("b.jsonl", 5)):
        own = [index for where, index in row if where == name]
        assert own == [n % size for n in range(len(own))]
    share = sum(name == "a.jsonl" for name, _ in row) / 2000
    assert abs(share - 0.75) < 4 * (0.75 * 0.25 / 2000) ** 0.5
    other = streams(tmp_path)
    other.set_epoch(1)
    assert first(names_of(other), 50) != row[:50]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_streamed_batches_are_the_same_for_any_number_of_workers(tmp_path, workers):
    mixture = streams(tmp_path).in_batches_of(4)
    wanted = first(names_of(streams(tmp_path)), 40)
    loader = DataLoader(mixture, batch_size=4, collate_fn=collate, num_workers=workers)
    assert [name for batch in first(iter(loader), 10) for name in batch] == wanted


def test_streams_leave_out_and_count_what_is_broken(tmp_path):
    picture(tmp_path / "a.png")
    write_lines(tmp_path / "a.jsonl", [llava_record("<image>", str(n), image=f"{'ab'[n % 2]}.png") for n in range(6)])
    mixture = open_mixture([DatasetSpec(path="a.jsonl", streaming=True, on_broken="skip")], folder=tmp_path, seed=0)
    assert [index for _, index in first(names_of(mixture), 7)] == [0, 2, 4, 0, 2, 4, 0]
    (report,) = mixture.report()
    assert (report.records, report.used, report.drawn, report.skipped) == (6, 3, None, {"missing medium": 3})
    strict = open_mixture([DatasetSpec(path="a.jsonl", streaming=True)], folder=tmp_path, seed=0)
    with pytest.raises(RequestError, match=r"a.jsonl:2: The image .*b.png is missing"):
        first(iter(strict), 3)


def test_one_json_list_cannot_be_streamed(tmp_path):
    (tmp_path / "a.json").write_text("[{}]")
    mixture = open_mixture([DatasetSpec(path="a.json", streaming=True)], folder=tmp_path, seed=0)
    with pytest.raises(RequestError, match="is one JSON list, which cannot be streamed"):
        next(iter(mixture))


def test_a_mixture_of_finite_datasets_has_a_length(tmp_path):
    assert isinstance(open_mixture([dataset(tmp_path, "a.jsonl", 3)], folder=tmp_path, seed=0), Mixture)


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_workers_say_one_sentence(tmp_path, workers):
    from mcompose.align.data.batching import from_worker

    mixture = open_mixture([dataset(tmp_path, "a.jsonl", 3)], folder=tmp_path, seed=0)

    def failing(samples):
        raise RequestError(f"{samples[0].place}: The image x.png is missing.", hint="Mend it.")

    with pytest.raises(RequestError) as caught:
        list(DataLoader(mixture, collate_fn=failing, num_workers=workers))
    error = from_worker(caught.value)
    assert type(error) is RequestError
    assert str(error) == f"{mixture[0].place}: The image x.png is missing. Mend it."
