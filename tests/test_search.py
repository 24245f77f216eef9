"""Searches: budgets, lineage, selection, divergence, and that a seed gives the same search."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

from sigexp.config import Search
from sigexp.datasets.gaussian import gaussian_impulses
from sigexp.population.feed import Feed
from sigexp.population.optimizers import Schedule
from sigexp.population.population import Population
from sigexp.search.automlp import AutoMLP
from sigexp.search.base import Candidate
from sigexp.search.fixed import Fixed, Random
from sigexp.search.records import Diverged
from sigexp.search.rounds import SearchLoop


def settings(kind, **fields):
    defaults = {name: value for name, value in asdict(Search()).items() if name != "_target_"}
    small = {"members": 6, "survivors": 2, "initial_samples": 40, "round_samples": 20, "max_samples": 1000}
    return kind(**{**defaults, **small, "patience": None, **fields})


def search(kind, *, lr=1.0, seed=0, momentum=0.9, on_round=None, lr_schedule="constant", **fields):
    problem = gaussian_impulses(image_size=12, size=60, density=0.1, sigma=(1.0, 1.0))
    problem = replace(problem, sizes={**problem.sizes, "valid": 20})
    chosen = settings(kind, **fields)
    torch.manual_seed(seed)
    members = [nn.Conv2d(1, 1, 5, padding=2) for _ in range(chosen.members)]
    hparams = {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "batch_size": 10}
    columns = {name: torch.full((len(members),), float(value)) for name, value in hparams.items()}
    population = Population(members, loss=problem.loss, metrics=problem.metrics, optimizer="sgd", hparams=columns)
    records = []
    loop = SearchLoop(
        chosen, population, Feed(problem, seed=0, device=torch.device("cpu")), problem,
        hparams=hparams, seed=seed, lr_schedule=lr_schedule,
        on_round=lambda record, _: records.append(record), on_progress=lambda _: None,
    )  # fmt: skip
    return loop.run(), records


def test_automlp_learns_keeps_its_best_and_its_lineage():
    outcome, records = search(AutoMLP)
    lines = {m.id: m for record in records for m in record.members}
    assert sum(len(record.members) for record in records) == len(lines), "ids are unique"
    assert len(records[0].members) == 6
    assert all(len(record.members) == 4 for record in records[1:]), "2 survivors and a clone of each"
    for member in lines.values():
        if member.parent is not None:
            assert lines[member.parent].round < member.round
            assert member.samples > lines[member.parent].samples
    assert outcome.best.valid_loss == min(m.valid_loss for m in lines.values())
    assert outcome.best.valid_loss < 0.2 * max(m.valid_loss for m in records[0].members if not m.diverged)


@pytest.mark.parametrize("kind", [AutoMLP, Fixed, Random])
def test_the_budget_is_kept_and_used(kind):
    outcome, records = search(kind, max_samples=500)
    assert outcome.total_samples <= 500
    assert outcome.total_samples > 450
    assert records[-1].total_samples == outcome.total_samples
    assert outcome.stopped == "budget"


def test_the_best_trains_on_alone_with_its_part_of_the_budget():
    outcome, records = search(AutoMLP, finish=0.5, max_samples=1000, lr=0.1)
    sizes = [len(record.members) for record in records]
    assert sizes == [6] + [4] * 3 + [1] * 26, "240 and 3 x 80, and 520 in rounds of 20"
    assert outcome.total_samples == 1000
    alone = [record.members[0] for record in records[4:]]
    assert alone[0].parent == records[3].best.id
    assert [m.parent for m in alone[1:]] == [m.id for m in alone[:-1]]
    assert len({(m.hparams["lr"], m.hparams["batch_size"]) for m in alone}) == 1
    assert outcome.best.valid_loss < records[3].best.valid_loss
    assert outcome.best.samples > records[3].best.samples


def test_a_small_budget_leaves_half_for_the_rounds():
    _, records = search(AutoMLP, max_samples=240)
    assert records[0].total_samples <= 120
    assert len(records) > 1


def test_initial_learning_rates_span_the_decades():
    rates = settings(AutoMLP, lr_decades=4.0, members=20).learning_rates(1e-2)
    np.testing.assert_allclose(rates, 10 ** np.linspace(-6, 2, 20))


def test_mutation_stays_in_its_ranges():
    chosen, rng = settings(AutoMLP, batch_max=12, lr_max=1.1), np.random.default_rng(0)
    for _ in range(200):
        h = {"lr": 1.0, "momentum": 0.9, "weight_decay": 0.0, "batch_size": 10}
        child = chosen.mutate(h, chosen.start(h), rng)
        assert 0.8 <= child["lr"] <= 1.1
        assert 8 <= child["batch_size"] <= 12
        assert child["momentum"] == 0.9


def test_diverged_candidates_rank_last_and_are_replaced():
    h = {"lr": 1.0, "momentum": 0.9, "weight_decay": 0.0, "batch_size": 10}
    pool = [Candidate(0, h, math.inf), Candidate(1, {**h, "lr": 0.5}, 2.0), Candidate(2, h, math.inf)]
    chosen = settings(AutoMLP, survivors=3)
    proposed = chosen.next(pool, np.random.default_rng(0), [pool], chosen.start(h))
    assert set(proposed.parents) == {1}
    assert proposed.keep == [1]


def test_all_diverged_is_an_error_of_its_own():
    with pytest.raises(Diverged, match="all 6 members"):
        search(AutoMLP, lr=1e30, lr_max=1e35, lr_decades=0.1)


def test_some_diverged_is_none():
    outcome, records = search(AutoMLP, lr=1.0, lr_max=1e25, lr_decades=25.0)
    assert any(m.diverged for m in records[0].members)
    assert math.isfinite(outcome.best.valid_loss)


def test_patience_stops_a_search_that_stands_still():
    outcome, records = search(Fixed, lr=1e-12, lr_min=1e-15, members=1, max_samples=10_000, patience=3)
    assert outcome.stopped == "no improvement in 3 rounds"
    assert len(records) == 4


def test_patience_by_itself_waits_for_a_schedule():
    def stopped(schedule):
        fields = {"lr": 1e-12, "lr_min": 1e-15, "members": 1, "max_samples": 400, "patience": "auto"}
        outcome, records = search(Fixed, lr_schedule=schedule, **fields)
        return outcome.stopped, len(records)

    assert stopped("constant") == ("no improvement in 12 rounds", 13)
    assert stopped("cosine") == ("budget", 20)


def test_one_seed_gives_one_search():
    def record():
        return [json.dumps([asdict(m) for m in r.members]) for r in search(AutoMLP, seed=3)[1]]

    assert record() == record()
    assert record() != [json.dumps([asdict(m) for m in r.members]) for r in search(AutoMLP, seed=4)[1]]


def test_the_outcome_holds_the_weights_of_its_best_member():
    outcome, _ = search(Random)
    problem = replace(gaussian_impulses(image_size=12, size=60, density=0.1, sigma=(1.0, 1.0)))
    model = nn.Conv2d(1, 1, 5, padding=2)
    weights = {name.removeprefix("params/"): v[0] for name, v in outcome.state.items() if name.startswith("params/")}
    model.load_state_dict(weights)
    inputs, targets = problem.examples("valid", 0, 20)
    assert float(problem.loss(model(inputs), targets).mean().detach()) == pytest.approx(
        outcome.best.valid_loss, rel=1e-5
    )


def test_cosine_schedule_ends_at_zero():
    cosine = Schedule("cosine", first=0.5, slope=0.005)
    assert Schedule("cosine").at(0) == 1.0
    assert cosine.at(0) == pytest.approx(0.5)
    assert cosine.at(100) == cosine.at(500) == pytest.approx(0.0, abs=1e-12)
    assert Schedule("constant", first=0.7).at(10) == 1.0


def test_feed_covers_every_example_once_an_epoch():
    problem = gaussian_impulses(image_size=8, size=30, sigma=(1.0, 1.0))
    feed = Feed(problem, seed=5, device=torch.device("cpu"))
    data = problem.examples("train").inputs.flatten(1)
    taken = torch.cat(
        [feed.take(start, 7).inputs.flatten(1) for start in range(0, 28, 7)] + [feed.take(28, 2).inputs.flatten(1)]
    )
    as_rows = lambda t: sorted(map(tuple, t.tolist()))  # noqa: E731
    assert as_rows(taken) == as_rows(data)
    assert torch.equal(feed.take(3, 9).inputs, feed.take(3, 9).inputs), "a pure function of the position"


def test_a_stream_goes_on_with_fresh_examples():
    problem = gaussian_impulses(image_size=8, size="stream", sigma=(1.0, 1.0))
    feed = Feed(problem, seed=0, device=torch.device("cpu"))
    assert torch.equal(feed.take(300, 5).inputs, problem.sample("train", torch.arange(300, 305)).inputs)
