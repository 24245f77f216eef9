"""Population based training by Ray Tune: an actor for each core, members that are paused after a round and go on."""

import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.plain import Found, Learner, first_members
from benchmarks.peers.task import ROUNDS, Arrays, Spec
from sigexp import machine, training

STATE, SEGMENTS = "state.pt", "segments.txt"


def search(spec: Spec, config: Mapping[str, Any], arrays: Arrays, folder: Path) -> Found:
    """The search, from `ray.init` to the best model of all members."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # no CSV, JSON and TensorBoard files of each trial
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it would tell its makers
    import ray
    from ray import tune

    arrangement = spec.arrangement
    random.seed(spec.seed)  # of which the scheduler draws
    ray.init(num_cpus=arrangement.workers * arrangement.threads, include_dashboard=False, log_to_driver=False)
    try:
        members = [{name: one[name] for name in ("lr", "batch_size")} for one in first_members(config)]
        space = {"own": tune.grid_search([{"member": i, **one} for i, one in enumerate(members)])}
        trainable = tune.with_parameters(
            trainable_of(tune), spec=spec.as_dict(), run=dict(config), arrays=dict(arrays), folder=str(folder)
        )
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": arrangement.threads}),
            param_space=space,
            tune_config=tune.TuneConfig(scheduler=scheduler(config, tune), reuse_actors=True),
            run_config=tune.RunConfig(
                storage_path=str(folder / "ray"),
                stop={"training_iteration": ROUNDS},
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
            ),
        )
        return gathered(tuner.fit(), folder)
    finally:
        ray.shutdown()


def gathered(results: Any, folder: Path) -> Found:
    """The members' best models out of their last checkpoints. Raises RuntimeError where one failed."""
    if results.errors:
        raise RuntimeError(f"Ray Tune: {results.errors[0]}")
    found = Found(trials=len(results))
    for result in results:
        state = torch.load(Path(result.checkpoint.path) / STATE, weights_only=True)
        found.add([], state["best"], state["best_model"])
    lines = (folder / SEGMENTS).read_text(encoding="ascii").splitlines()
    found.segments = [(float(a), float(b), int(n)) for a, b, n in map(str.split, lines)]
    return found


def scheduler(config: Mapping[str, Any], tune: Any) -> Any:
    """PBT as `search=pbt` has it: the worst quantile replaced, lr and batch size each times 0.8 or 1.25."""
    chosen, settings = config["search"], training.build_search(config)
    start = settings.start({"lr": 1.0, "batch_size": 1.0})

    def inside(found: dict[str, Any]) -> dict[str, Any]:
        return {"own": start.clip(found["own"])}

    return tune.schedulers.PopulationBasedTraining(
        time_attr="training_iteration",
        metric="valid",
        mode="min",
        perturbation_interval=1,
        hyperparam_mutations={
            "own": {
                "lr": tune.loguniform(chosen["lr_min"], chosen["lr_max"]),
                "batch_size": tune.randint(chosen["batch_min"], chosen["batch_max"] + 1),
            }
        },
        quantile_fraction=chosen["quantile"],
        resample_probability=0.0,
        perturbation_factors=tuple(sorted(chosen["factors"], reverse=True)),
        custom_explore_fn=inside,
        synch=True,
    )


def trainable_of(tune: Any) -> Any:
    """The class of Ray's that this module would name, were Ray imported with it."""

    class Member(tune.Trainable):
        """A member; its checkpoint is one file."""

        def setup(self, config: dict[str, Any], spec: Any, run: Any, arrays: Arrays, folder: str) -> None:
            machine.tune_allocator()
            self.spec, self.run, self.arrays, self.folder = Spec.of(spec), run, arrays, Path(folder)
            torch.set_num_threads(self.spec.arrangement.threads)
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            own, samples = new_config["own"], self.spec.round_samples()
            self.learner = Learner(self.spec, self.run, self.arrays, own["member"], samples * ROUNDS)
            self.learner.lr, self.learner.batch_size = own["lr"], int(own["batch_size"])
            return True

        def step(self) -> dict[str, Any]:
            valid, segment = self.learner.round(self.spec.round_samples())
            with open(self.folder / SEGMENTS, "a", encoding="ascii") as file:
                file.write("{!r} {!r} {}\n".format(*segment))
            return {"valid": valid}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            torch.save(self.learner.state(), os.path.join(checkpoint_dir, STATE))

        def load_checkpoint(self, checkpoint: str) -> None:
            self.learner.load(torch.load(os.path.join(checkpoint, STATE), weights_only=True))

    return Member
