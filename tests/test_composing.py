"""Jobs composed out of one config have to be what Hydra makes of each."""

from types import SimpleNamespace

import pytest

from sigexp import sweeping
from sigexp.cli import main
from sigexp.composing import Composed, Composer

JOBS = {
    "values": ["experiment=gaussian", "seed=3", "trainer.optimizer.lr=0.25", "dataset.size=stream"],
    "other values": ["experiment=gaussian", "seed=4", "trainer.optimizer.lr=1e-3", "dataset.size=20"],
    "words and nothing": ["experiment=gaussian", "seed=4", "trainer.schedule=cosine", "search.patience=null"],
    "another group": ["experiment=gaussian", "model=separable", "seed=4"],
    "a group after values": ["seed=4", "experiment=bayer", "model=deep", "model.hidden=5"],
    "twice": ["experiment=gaussian", "seed=1", "seed=2"],
    "field, then section": ["experiment=gaussian", "trainer.optimizer.lr=0.25", "trainer.optimizer={lr:0.5}"],
    "section, then field": ["experiment=gaussian", "trainer.optimizer={lr:0.5}", "trainer.optimizer.lr=0.25"],
    "forced": ["experiment=gaussian", "++seed=3", "seed=4"],
    "by another field": ["experiment=gaussian", "seed=5", "dataset.seed=${seed}", "footprint=5"],
    "a field that is new": ["experiment=gaussian", "model.no_such=3"],
    "converted": ["experiment=gaussian", "seed='3'", "footprint='7'", "device=0"],
    "of the sweep": ["experiment=gaussian", "sweep.rerun=all", "seed=2"],
}


@pytest.fixture
def sweeper(workdir, monkeypatch):
    """Hydra's, as a sweep is given it."""
    met = []
    monkeypatch.setattr(sweeping, "sweep", lambda sweeper, jobs: met.append(sweeper))
    main(["-m", "experiment=gaussian", "seed=0,1"])
    return met[0]


def test_a_job_is_what_hydra_composes(sweeper):
    composer = Composer(sweeper)
    load, loaded = sweeper.hydra_context.config_loader.load_sweep_config, []
    composer.loader = SimpleNamespace(load_sweep_config=lambda *given: loaded.append(given) or load(*given))
    for job in JOBS.values():
        found, expected = composer.compose(job), load(sweeper.config, list(job))
        assert found == Composed.of(expected), job
        assert found.config["model"]["_target_"].startswith("sigexp.")
    assert len(loaded) < len(JOBS)


@pytest.mark.parametrize(
    "wrong", [
        "seed=abc", "seed=1.5", "seed=true", "seed=null", "device=null", "footprint=x", "seed.x=3", "trainer.no_such=1",
        "model=none", "dataset.size=[", "nonsense=1",
    ]
)  # fmt: skip
def test_what_is_wrong_is_told_as_hydra_tells_it(sweeper, wrong):
    job = ["experiment=gaussian", wrong]
    with pytest.raises(Exception) as expected:  # noqa: PT011
        sweeper.hydra_context.config_loader.load_sweep_config(sweeper.config, job)
    with pytest.raises(type(expected.value)) as found:
        Composer(sweeper).compose(job)
    assert str(found.value) == str(expected.value)
