"""The router's loss over a step, its labels, and its separate fit against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mcompose.align.data.expert_routing import ExpertTable, Routing
from mcompose.align.data.samples import Sample
from mcompose.align.experts.router_loss import RouterLoss, class_weights
from mcompose.align.experts.router_probe import fit_probe
from mcompose.errors import NumericsError, RequestError, UnknownNameError
from mcompose.recipe import RouterTraining

CONFIG = {
    "experts": {
        "tables": {"modality": "image", "domain": "table"},
        "maths": {"modality": "image", "domain": "math"},
        "voices": {"modality": "audio", "domain": "speech"},
    },
    "routers": {
        "image": {"classes": ["none", "tables", "maths"], "tile": "last"},
        "audio": {"classes": ["none", "voices"], "tile": "mean"},
    },
}
ONE = {
    "experts": {name: entry for name, entry in CONFIG["experts"].items() if entry["modality"] == "image"},
    "routers": {"image": CONFIG["routers"]["image"]},
}


def sample(domain, *, images=1, sounds=0):
    parts = [{"type": "image", "path": "x.png"}] * images + [{"type": "audio", "path": "x.wav"}] * sounds
    messages = ({"role": "user", "content": [*parts, {"type": "text", "text": "?"}]},)
    return Sample(messages, domain, "a.jsonl", 0)


def routing(config=ONE, **spec):
    return Routing(ExpertTable.of(config), RouterTraining(**spec), 0, labelled=True)


def test_labels_are_experts_shifted_by_one():
    """Class 0 is none, and experts are 1..N in the order of the classes, which need not be that of the experts."""
    one = routing()
    assert one.labels([sample("table"), sample("math"), sample("photos")]) == {"image": [1, 2, 0]}
    assert one.experts([sample("table"), sample("math"), sample("photos")]) == ["tables", "maths", None]
    turned = {**ONE, "routers": {"image": {"classes": ["none", "maths", "tables"]}}}
    assert routing(turned).labels([sample("table"), sample("math")]) == {"image": [2, 1]}


def test_labels_of_many_items_of_none_and_of_unknown_domains():
    rows = [sample("table", images=2), sample(None), sample("math", images=0), sample("math")]
    assert routing().labels(rows) == {"image": [1, 1, -100, 2]}
    assert routing().experts(rows) == ["tables", "tables", None, "maths"]
    assert routing(general=["photos"]).labels([sample("photos"), sample("maps")]) == {"image": [0, -100]}


def test_a_domain_of_another_modality_says_nothing():
    both = routing(CONFIG)
    rows = [sample("speech", images=1, sounds=2), sample("table", images=1, sounds=1), sample("photos", sounds=1)]
    assert both.labels(rows) == {"image": [-100, 1, 0], "audio": [1, 1, -100, 0]}
    assert both.experts(rows) == {"image": [None, "tables", None], "audio": ["voices", "voices", None, None]}


def test_an_experts_name_will_do_where_domains_are_shared():
    twins = {**ONE, "experts": {name: {"modality": "image", "domain": "chart"} for name in ("tables", "maths")}}
    assert routing(twins).experts([sample("maths")]) == ["maths"]
    with pytest.raises(RequestError, match="tables, maths have the same domain 'chart'"):
        routing(twins).experts([sample("chart")])


def test_domains_that_do_not_fit_are_told():
    routing().check(["table", "photos"])
    with pytest.raises(RequestError, match=r"No data .* domain of the experts \(table, math\)"):
        routing().check(["photos"])
    with pytest.raises(UnknownNameError, match="'photo', which no data have"):
        routing(general=["photo"]).check(["table", "photos"])


def test_a_slip_of_the_pen_in_a_domain_is_told():
    with pytest.raises(RequestError, match="domain 'tabel' is not an expert's, and looks like 'table'") as told:
        routing().check(["table", "tabel"])
    assert "Write 'table'" in told.value.hint
    with pytest.raises(RequestError) as told:
        routing().check(["photos", "table", "tabel"])
    assert "'router.general: [photos, tabel]'" in told.value.hint  # that list is all there is of class none
    with pytest.raises(RequestError, match="looks like 'maths'"):  # an expert's name, not its domain
        routing().check(["table", "mats"])
    routing(general=["tabel"]).check(["table", "tabel"])
    routing().check(["table", "general", "photos"])


def test_noise_replaces_labels_by_other_classes_alike_and_is_addressed():
    noisy = routing(routing="noise", noise=0.4)
    rows = [sample("table")] * 4000
    routes = noisy.experts(rows, list(range(4000)))
    shares = [routes.count(name) / 4000 for name in ("tables", "maths", None)]
    np.testing.assert_allclose(shares, [0.6, 0.2, 0.2], atol=0.03)
    assert noisy.experts(rows[:50], list(range(100, 150))) == routes[100:150]  # another batch, the same places
    assert noisy.experts(rows[:50]) == ["tables"] * 50  # without a place there is no noise
    assert noisy.labels(rows[:3]) == {"image": [1, 1, 1]}
    assert noisy.experts([sample(None)] * 50, list(range(50))) == [None] * 50
    assert routing(routing="predicted").experts(rows) == "auto"


def pieces(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits_NC = torch.randn(8, 3, generator=generator)
    labels_N = torch.tensor([0, 1, 2, -100, 1, 1, -100, 0])
    return logits_NC, labels_N


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, 2.0, 3.0]])
def test_a_steps_loss_is_the_weighted_mean_however_it_is_cut(weights):
    logits_NC, labels_N = pieces()
    weights_C = torch.tensor(weights)
    wanted = torch.nn.functional.cross_entropy(logits_NC, labels_N, weight=weights_C)
    for cuts in ([8], [3, 5], [4, 4], [1, 7]):
        loss = RouterLoss(0.7, {"image": weights})
        parts = list(zip(logits_NC.split(cuts), labels_N.split(cuts), strict=True))
        loss.set_total(loss.begin_step([labels for _, labels in parts] + [None]))
        torch.testing.assert_close(sum(loss(x, y) for x, y in parts), 0.7 * wanted)
        told = loss.take_totals()
        assert told[0] == pytest.approx(float(wanted), rel=1e-5)
        right = (logits_NC.argmax(-1) == labels_N)[labels_N >= 0]
        assert told[1:] == [float(right.sum()), 6.0]


def test_nothing_labelled_is_zero_with_a_gradient():
    logits_NC = torch.randn(2, 3, requires_grad=True)
    loss = RouterLoss(1.0, {"image": [1.0] * 3})
    labels_N = torch.tensor([-100, -100])
    loss.set_total(loss.begin_step([labels_N]))
    value = loss(logits_NC, labels_N)
    value.backward()
    assert float(value.detach()) == 0.0
    assert not logits_NC.grad.any()


def test_two_routers_are_summed_over_one_step():
    loss = RouterLoss(1.0, {"image": [1.0] * 3, "audio": [1.0] * 2})
    logits = {"image": torch.randn(2, 3), "audio": torch.randn(1, 2)}
    labels = {"image": torch.tensor([2, -100]), "audio": torch.tensor([1])}
    loss.set_total(loss.begin_step([labels]))
    cross = torch.nn.functional.cross_entropy
    wanted = (cross(logits["image"][:1], labels["image"][:1]) + cross(logits["audio"], labels["audio"])) / 2
    torch.testing.assert_close(loss(logits, labels), wanted)
    loss.set_total(loss.begin_step([{"image": labels["image"], "audio": torch.zeros(0, dtype=torch.long)}]))
    some = loss({"image": logits["image"]}, {"image": labels["image"], "audio": torch.zeros(0, dtype=torch.long)})
    torch.testing.assert_close(some, cross(logits["image"][:1], labels["image"][:1]))
    with pytest.raises(ValueError, match="3 router labels came for 2 items"):
        RouterLoss(1.0, {"image": [1.0] * 3})(torch.randn(2, 3), torch.tensor([0, 1, 2]))


def test_class_weights():
    classes = {"image": ["none", "tables", "maths"]}
    assert class_weights(None, classes, {}) == {"image": [1.0, 1.0, 1.0]}
    assert class_weights({"none": 0.5}, classes, {}) == {"image": [0.5, 1.0, 1.0]}
    balanced = class_weights("balanced", classes, {"image": [6, 3, 0]})
    assert balanced == {"image": [0.75, 1.5, 0.0]}  # n / (classes that occur * n_c)
    with pytest.raises(UnknownNameError, match="'table', which is not a class"):
        class_weights({"table": 2.0}, classes, {})
    with pytest.raises(RequestError, match="stream"):
        class_weights("balanced", classes, {})


@pytest.mark.parametrize("spread", [1.0, 30.0])
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0, 1.5]])
def test_a_probe_is_scikit_learns(weights, spread):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, size=300)
    x = (rng.normal(size=(300, 12)) + 0.7 * rng.normal(size=(4, 12))[labels]) * spread
    l2 = 1e-2 * spread**2
    probe = fit_probe(torch.from_numpy(x), torch.from_numpy(labels), classes=4, l2=l2, weights=weights)
    items = np.ones(300) if weights is None else np.array(weights)[labels]
    oracle = LogisticRegression(C=1 / (l2 * items.sum()), fit_intercept=False, tol=1e-10, max_iter=20_000)
    oracle.fit(x, labels, sample_weight=items)
    np.testing.assert_allclose(probe.weight.numpy(), oracle.coef_, atol=2e-4 * np.abs(oracle.coef_).max())
    assert probe.accuracy == pytest.approx(oracle.score(x, labels))
    assert probe.losses[-1] == pytest.approx(min(probe.losses))
    assert probe.items == 300


def test_a_probe_without_items_or_with_broken_ones_is_refused():
    with pytest.raises(RequestError, match="no item"):
        fit_probe(torch.zeros(0, 3), torch.zeros(0), classes=2, l2=1e-3)
    with pytest.raises(NumericsError, match="not finite"):
        fit_probe(torch.full((2, 3), torch.nan), torch.tensor([0, 1]), classes=2, l2=1e-3)
    positive = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))  # without a bias, no other would do
    alone = fit_probe(positive, torch.ones(5), classes=3, l2=1e-3)  # classes may be empty
    assert alone.accuracy == 1.0
