"""pbt, halving and optuna by scripted scores: who goes on from whom, with what, for how much of the budget."""

import json
import math
import shutil
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from test_search import search as search_for
from test_search import settings

from sigexp.cli import main
from sigexp.search import optuna as proposing
from sigexp.search.automlp import AutoMLP
from sigexp.search.base import Candidate, Round, divided, latin
from sigexp.search.fixed import Random
from sigexp.search.halving import Halving
from sigexp.search.optuna import Optuna
from sigexp.search.pbt import PBT

H = {"lr": 1.0, "momentum": 0.9, "weight_decay": 0.0, "batch_size": 10}
needs_optuna = pytest.mark.skipif(
    not (find_spec("optuna") and find_spec("cmaes")), reason="the extra 'optuna' is not installed"
)
KINDS = [PBT, Halving, pytest.param(Optuna, marks=needs_optuna)]
SMALL = [
    "experiment=gaussian", "dataset.size=20", "dataset.test_size=4", "dataset.image_size=24", "footprint=5",
    "search.max_samples=240", "search.valid_samples=20", "trainer.batch_size=5", "trainer.threads=1",
    "trainer.processes=1",
]  # fmt: skip


@dataclass
class Played:
    rounds: list[Round] = field(default_factory=list)
    past: list[list[Candidate]] = field(default_factory=list)
    total: int = 0


def play(chosen, score, *, seed=0):
    """A search as the loop carries it, with members whose score is `score(hparams, parent, id)`."""
    start, rng, played = chosen.start(H), np.random.default_rng(seed), Played()
    pool: list[Candidate] = []
    following = chosen.first(start, rng)
    while following is not None:
        samples = min(following.samples, (chosen.max_samples - played.total) // len(following.parents))
        if samples < 1:
            break
        parents = [None if i is None else pool[i] for i in following.parents]
        number = sum(map(len, played.past))
        trained = [
            Candidate(number + i, h, score(h, parent, number + i), parent and parent.id)
            for i, (h, parent) in enumerate(zip(following.hparams, parents, strict=True))
        ]
        played.rounds.append(replace(following, samples=samples))
        played.past.append(trained)
        played.total += samples * len(trained)
        pool = trained + [pool[i] for i in following.keep]
        following = chosen.next(pool, rng, played.past, start)
    return played


def pool_of(*scores):
    return [Candidate(i, {**H, "lr": 0.01 * (i + 1)}, score) for i, score in enumerate(scores)]


def after(chosen, pool, seed=0):
    return chosen.next(pool, np.random.default_rng(seed), [pool], chosen.start(H))


def test_pbt_replaces_its_worst_by_changed_copies_of_its_best():
    pool = pool_of(0.5, 0.1, 0.9, 0.4, 0.2, 0.3, 0.8, 0.7)
    seen = set()
    for seed in range(20):
        proposed = after(settings(PBT, members=8, quantile=0.25), pool, seed)
        assert len(proposed.parents) == 8
        for i in (0, 1, 3, 4, 5, 7):
            assert (proposed.parents[i], proposed.hparams[i]) == (i, pool[i].hparams)
        for i in (2, 6):
            parent = proposed.parents[i]
            assert parent in (1, 4)
            lr = proposed.hparams[i]["lr"] / pool[parent].hparams["lr"]
            seen.add((parent, round(lr, 9), proposed.hparams[i]["batch_size"]))
    assert seen == {(parent, lr, size) for parent in (1, 4) for lr in (0.8, 1.25) for size in (8, 12)}


def test_pbt_replaces_all_that_diverged():
    proposed = after(settings(PBT, members=6), pool_of(math.inf, 2.0, math.inf, math.nan, math.inf, math.inf))
    assert proposed.parents == [1] * 6
    assert proposed.hparams[1] == pool_of(0, 0)[1].hparams


@pytest.mark.parametrize("kind", [PBT, Halving])
def test_a_round_in_which_all_diverge_goes_back_to_the_best(kind):
    chosen = settings(kind, members=3, survivors=1, round_samples=100, max_samples=3000)
    played = play(chosen, lambda h, parent, i: math.inf if 9 <= i <= 11 else 1.0 / (i + 1))
    lost = next(n for n, r in enumerate(played.past) if all(c.score == math.inf for c in r))
    best = played.past[lost - 1][-1] if kind is Halving else max(played.past[lost - 1], key=lambda c: c.id)
    assert {c.parent for c in played.past[lost + 1]} == {best.id}
    assert all(c.hparams != best.hparams for c in played.past[lost + 1]), "what it diverged with is changed"
    assert played.total == 3000


def test_pbt_of_equals_and_of_one():
    proposed = after(settings(PBT, members=4), pool_of(1.0, 1.0, 1.0, 1.0))
    assert proposed.parents == [0, 1, 2, 0], "ties in their order"
    alone = after(settings(PBT, members=1, survivors=1), pool_of(1.0))
    assert (alone.parents, alone.hparams) == ([0], [pool_of(0)[0].hparams])


def test_pbt_resamples_within_what_random_draws():
    chosen = settings(PBT, members=4, explore="resample", lr_decades=0.5)
    rates = [after(chosen, pool_of(1.0, 2.0, 3.0, 4.0), seed).hparams[3]["lr"] for seed in range(50)]
    assert 10**-0.5 <= min(rates) < 0.6 < 1.7 < max(rates) <= 10**0.5


@given(st.integers(1, 40), st.integers(2, 6), st.integers(1, 500), st.integers(0, 5000))
@limits(max_examples=80, deadline=None)
def test_halving_spends_its_budget_to_the_last_sample(members, eta, round_samples, more):
    chosen = settings(Halving, members=members, eta=eta, round_samples=round_samples, max_samples=members + more)
    plan = chosen.plan()
    assert sum(count * samples for count, samples in plan) == chosen.max_samples
    sizes = [count for count, _ in plan]
    assert sizes[0] == members
    assert sizes == sorted(sizes, reverse=True)
    if more > 3 * members:
        assert sizes[-1] == 1
    assert all(1 <= samples <= max(round_samples, 1) for _, samples in plan)


def test_halving_gives_every_rung_its_share_and_the_next_one_its_best():
    chosen = settings(Halving, members=9, survivors=1, eta=3, max_samples=2700, round_samples=200)
    played = play(chosen, lambda h, parent, i: (parent.score if parent else (7 * i) % 9) / 2)
    sizes = [len(round_.parents) for round_ in played.rounds]
    assert sizes == [9] + [3] * 2 + [1] * 5
    for count in (9, 3, 1):
        assert sum(count * r.samples for r in played.rounds if len(r.parents) == count) == 900
    assert sorted(played.rounds[1].parents) == [0, 4, 8], "those with (7 i) mod 9 of 0, 1, 2"
    assert [c.parent for c in played.past[1]] == played.rounds[1].parents
    last = played.past[-1][0]
    assert last.hparams == played.past[0][0].hparams, "the best of all trains on as it is"
    assert played.total == 2700


def test_halving_fills_the_places_of_the_diverged():
    chosen = settings(Halving, members=9, survivors=1, eta=3, max_samples=2700, round_samples=1000)
    scores = [math.inf] * 9
    scores[4] = 1.0
    proposed = after(chosen, pool_of(*scores))
    assert proposed.parents == [4, 4, 4]
    rates = [h["lr"] / 0.05 for h in proposed.hparams]
    assert rates[0] == 1
    assert len(set(rates)) == 3
    assert all(0.8 <= rate <= 1.25 for rate in rates)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("members", "budget"), [(1, 1), (1, 50), (2, 3), (6, 6), (6, 7), (6, 500), (9, 10_000)])
def test_every_budget_is_used_and_kept(kind, members, budget):
    chosen = settings(kind, members=members, survivors=1, max_samples=budget, round_samples=400)
    played = play(chosen, lambda h, parent, i: 1.0)
    assert budget - max(members, 2) < played.total <= budget
    assert len(played.rounds[0].parents) == members


@pytest.mark.parametrize("kind", KINDS)
def test_hyperparameters_that_never_improve_stay_in_their_ranges(kind):
    chosen = settings(kind, lr_min=0.5, lr_max=2.0, batch_min=9, batch_max=11, round_samples=20, max_samples=2000)
    played = play(chosen, lambda h, parent, i: h["lr"])
    for trained in played.past:
        for candidate in trained:
            assert 0.5 <= candidate.hparams["lr"] <= 2.0
            assert 9 <= candidate.hparams["batch_size"] <= 11
            assert isinstance(candidate.hparams["batch_size"], int)


@pytest.mark.parametrize("kind", [AutoMLP, Random, *KINDS])
def test_a_round_depends_on_nothing_but_what_a_checkpoint_holds(kind):
    def score(h, parent, i):
        return math.inf if i % 7 == 3 else (parent.score if parent else 1.0) * (0.9 + 0.1 * abs(math.log(h["lr"])))

    chosen = settings(kind, max_samples=2000)
    played = play(chosen, score, seed=5)
    assert play(chosen, score, seed=5) == played
    assert play(chosen, score, seed=6) != played
    # The pool of the last round, out of JSON, for a search that is built anew.
    past = [[Candidate(**line) for line in json.loads(json.dumps(list(map(asdict, r))))] for r in played.past[:2]]
    pool = past[1]
    one, other = (
        settings(kind, max_samples=2000).next(pool_, np.random.default_rng(1), past_, chosen.start(H))
        for pool_, past_ in ((pool, past), (played.past[1], played.past[:2]))
    )
    assert one == other


@pytest.mark.parametrize("kind", KINDS)
def test_a_population_is_searched_from_its_first_round_to_its_last(kind):
    outcome, records = search_for(kind, max_samples=600)
    assert 590 < outcome.total_samples <= 600
    assert outcome.stopped == "budget"
    lines = {m.id: m for record in records for m in record.members}
    for member in lines.values():
        if member.parent is None:
            assert member.round == 1
        else:
            assert lines[member.parent].round < member.round
            assert member.samples > lines[member.parent].samples
    assert outcome.best.valid_loss == min(m.valid_loss for m in lines.values() if not m.diverged)
    assert outcome.best.valid_loss < 0.5 * max(m.valid_loss for m in records[0].members if not m.diverged)


@needs_optuna
@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_optuna_finds_out_what_gains_most(sampler):
    """Every round's loss falls by a factor that is best at lr = 0.2, whatever the parent has come to."""
    chosen = settings(
        Optuna,
        members=8,
        survivors=2,
        sampler=sampler,
        min_rounds=25,
        round_samples=500,
        max_samples=20_000,
        lr_decades=2.0,
    )
    played = play(
        chosen, lambda h, parent, i: (parent.score if parent else 1.0) * (0.5 + abs(math.log10(h["lr"] / 0.2)))
    )
    off = [np.median([abs(math.log10(c.hparams["lr"] / 0.2)) for c in r[1:]]) for r in played.past]
    assert np.median(off[-8:]) < 0.5 * off[0]
    for before, r in zip(played.past, played.past[1:], strict=False):
        best = min((c for t in played.past[: played.past.index(r)] for c in t), key=lambda c: c.score)
        assert r[0].parent == best.id, f"the best goes on, after {len(before)}"
        assert r[0].hparams == best.hparams


@needs_optuna
@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
@pytest.mark.parametrize(
    "fields",
    [{"lr_decades": 0.0, "batch_max": 10, "batch_min": 10}, {"batch_max": 10, "batch_min": 10}, {"members": 1}],
)
def test_optuna_with_one_choice_or_none(sampler, fields):
    chosen = settings(Optuna, **{"survivors": 1, "sampler": sampler, "max_samples": 300, **fields})
    assert 298 <= play(chosen, lambda h, parent, i: math.inf if i % 3 == 1 else 1.0).total <= 300


@needs_optuna
@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_optuna_learns_from_batch_sizes_that_were_cut(sampler):
    chosen = settings(Optuna, sampler=sampler, batch_min=9, batch_max=19)
    pool = [Candidate(i, {**H, "batch_size": size}, 1.0) for i, size in enumerate((3, 9, 19, 40))]
    proposed = after(chosen, pool)
    assert all(9 <= h["batch_size"] <= 19 for h in proposed.hparams[1:])


@needs_optuna
def test_optuna_proposes_momentum_and_weight_decay_where_ranges_are_given():
    chosen = settings(Optuna, momentum_range=(0.5, 0.8), weight_decay_range=(1e-5, 1e-3), max_samples=3000)
    seen = [c.hparams for r in play(chosen, lambda h, parent, i: 1.0 - h["momentum"]).past for c in r]
    assert all(0.5 <= h["momentum"] <= 0.8 and 1e-5 <= h["weight_decay"] <= 1e-3 for h in seen)
    assert len({h["momentum"] for h in seen}) > 10
    fixed = [c.hparams for r in play(settings(Optuna), lambda h, parent, i: 1.0).past for c in r]
    assert {(h["momentum"], h["weight_decay"]) for h in fixed} == {(0.9, 0.0)}


def test_a_trial_is_judged_by_its_round_and_its_parent():
    first = [Candidate(0, H, 1.0), Candidate(1, H, 4.0), Candidate(2, H, math.inf)]
    second = [Candidate(3, H, 0.5, 0), Candidate(4, H, 0.5, 1), Candidate(5, H, math.inf, 1)]
    found = proposing.gains([first, second])
    np.testing.assert_allclose(found[0], [-math.log(2), math.log(2), math.log(2) + 1])
    assert found[1][1] < found[1][0] < found[1][2]
    negative = proposing.gains([[Candidate(0, H, -1.0), Candidate(1, H, 1.0)]])
    assert negative == [[-1.0, 1.0]], "losses below zero have no logarithm"


@given(st.integers(1, 10_000), st.integers(1, 300), st.integers(1, 30))
@limits(max_examples=60, deadline=None)
def test_a_sum_of_nearly_equal_parts(total, most, least):
    parts = divided(total, most, least)
    assert sum(parts) == total
    assert 1 <= min(parts) <= max(parts) <= min(parts) + 1
    assert max(parts) <= most
    assert len(parts) >= min(least, total)


def test_the_best_of_automlp_trains_on_alone():
    chosen = settings(AutoMLP, finish=0.5, max_samples=1000, round_samples=30)
    played = play(chosen, lambda h, parent, i: 1.0 / (i + 1))
    sizes = [len(round_.parents) for round_ in played.rounds]
    assert sizes == [6, 4, 4] + [1] * 18, "another round of 4 x 30 would leave less than half"
    assert [r.samples for r in played.rounds[3:]] == [30] * 17 + [10]
    assert played.past[3][0].parent == played.past[2][-1].id, "the best of those that trained and were kept"
    for before, alone in zip(played.past[3:], played.past[4:], strict=False):
        assert (alone[0].parent, alone[0].hparams) == (before[0].id, played.past[2][-1].hparams)


@given(
    st.integers(1, 20),
    st.integers(1, 8),
    st.integers(1, 500),
    st.integers(0, 5000),
    st.floats(0.001, 1.0),
)
@limits(max_examples=80, deadline=None)
def test_a_finish_has_its_part_of_the_budget_to_the_last_sample(members, survivors, round_samples, more, finish):
    budget = 2 * members + more
    fields = {"members": members, "survivors": survivors, "round_samples": round_samples, "finish": finish}
    chosen = settings(AutoMLP, initial_samples=100, max_samples=budget, **fields)
    played = play(chosen, lambda h, parent, i: 1.0)
    first = len(played.rounds[0].parents) * played.rounds[0].samples
    alone = sum(r.samples for r in played.rounds[chosen.searching() :])
    assert played.total == budget
    assert alone >= min(finish * budget, budget - first) - 1e-6
    assert alone < finish * budget + 2 * survivors * round_samples, "another round of clones would fit"
    assert max(r.samples for r in played.rounds[1:]) <= round_samples


def test_who_trains_alone_and_diverges_begins_again_from_the_best(caplog):
    chosen = settings(AutoMLP, finish=0.8, max_samples=1000)
    alone = 6 + 1  # the second member of the finish
    played = play(chosen, lambda h, parent, i: math.inf if i == alone else 1.0 + i if i > alone else 1.0 / (i + 1))
    lost = next(n for n, r in enumerate(played.past) if r[0].id == alone)
    best, again, later = (played.past[n][0] for n in (lost - 1, lost + 1, lost + 2))
    assert again.parent == best.id
    assert again.hparams["lr"] != best.hparams["lr"], "what it diverged with is changed"
    assert "the member that trains alone diverged: seeded anew from member 6" in caplog.text
    assert (later.parent, later.hparams) == (again.id, again.hparams), "worse than the best so far, it goes on"
    assert played.total == 1000


def test_points_are_in_every_part_of_every_field():
    points = latin(10, 3, np.random.default_rng(0))
    assert np.array_equal(np.sort(np.floor(10 * points), 0), np.tile(np.arange(10)[:, None], 3))


def test_a_missing_package_is_told(monkeypatch, workdir, capsys):
    monkeypatch.setattr(proposing, "find_spec", lambda name: None)
    assert main([*SMALL, "search=optuna"]) == 2
    needed = "sigexp: search=optuna with search.sampler=tpe needs optuna: pip install 'sigexp[optuna]'"
    assert capsys.readouterr().err.strip() == needed
    assert not (workdir / "outputs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("search=pbt search.quantile=0.7", "search.quantile=0.7: expected a number above 0, at most 0.5"),
        ("search=pbt search.explore=perturbe", "search.explore=perturbe: unknown; did you mean perturb?"),
        ("search=pbt search.factors=[0.8,-1]", "search.factors=[0.8, -1]: expected two positive numbers"),
        ("search=pbt search.factors=[0.8]", "search.factors=[0.8]: expected a list of 2 values, each a number"),
        ("search=pbt search.min_rounds=0", "search.min_rounds=0: expected a whole number of at least 1"),
        ("search=pbt search.quantle=0.2", "search.quantle: no such field; did you mean search.quantile?"),
        ("search=halving search.eta=1", "search.eta=1: expected a whole number of at least 2"),
        ("search=halving search.eta=two", "search.eta='two': expected a whole number"),
        ("search=automlp search.eta=2", "search.eta: no such field"),
        ("search.patience=soon", "search.patience=soon: expected auto, null or a whole number of rounds"),
        ("search.patience=0", "search.patience=0: expected auto, null or a whole number of rounds, at least 1"),
        ("search.patience=true", "search.patience=True: expected auto, null or a whole number of rounds"),
        ("search=automlp search.finish=1.1", "search.finish=1.1: expected a number from 0 to 1"),
        ("search=automlp search.finish=late", "search.finish='late': expected a number"),
        ("search=optuna search.sampler=tpa", "search.sampler=tpa: unknown; did you mean tpe?"),
    ],
)
def test_wrong_fields_are_told(words, said, workdir, capsys):
    assert main([*SMALL, *words.split()]) == 2
    assert said in capsys.readouterr().err
    assert not (workdir / "outputs").exists()


@needs_optuna
@pytest.mark.parametrize("setting", ["momentum_range=[0.9,0.5]", "momentum_range=[0.5,1]", "weight_decay_range=[0,1]"])
def test_wrong_ranges_are_told(setting, workdir, capsys):
    assert main([*SMALL, "search=optuna", f"search.{setting}"]) == 2
    assert f"search.{setting.partition('=')[0]}=" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pbt", "halving", pytest.param("optuna", marks=needs_optuna)])
def test_a_run_and_its_replay(name, workdir):
    assert main([*SMALL, f"search={name}"]) == 0
    (folder,) = (workdir / "outputs" / "gaussian" / "linear").iterdir()
    recorded = json.loads((folder / "result.json").read_text())
    assert recorded["search"] == name
    assert 240 - 9 < recorded["samples"] <= 240
    if name != "halving":
        return  # one replay is enough: that whose rounds have different numbers of members
    shutil.move(folder, workdir / "kept")
    assert main(["replay", str(workdir / "kept")]) == 0
    (again,) = (workdir / "outputs" / "gaussian" / "linear").iterdir()
    replayed = json.loads((again / "result.json").read_text())
    assert replayed["best"]["valid"]["loss"] == pytest.approx(recorded["best"]["valid"]["loss"], rel=1e-5)
