"""How a population is computed, and what carries it: this process, others beside it, or actors of a cluster."""

import logging
import pickle
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from sigexp import machine, sharing
from sigexp.population.calibrate import Calibration, calibrate
from sigexp.population.cluster import Cluster
from sigexp.population.feed import Feed
from sigexp.population.plan import Wanted
from sigexp.population.population import Population
from sigexp.population.shards import Shards
from sigexp.search.rounds import Carried

log = logging.getLogger("sigexp")


def planned(population: Population, feed: Feed, config: Mapping[str, Any], cluster: Cluster | None) -> Calibration:
    """How the population is computed, alone or with those of other runs; on a cluster in a part for every actor."""
    shared, alone, known = sharing.SHARED.get(), wanted(config), machine.cache_dir() / "plans"
    if cluster is not None:
        actors = processes_of(config["trainer"], cluster)
        found = calibrate(population, feed, replace(alone, processes=actors), known)
        return replace(found, plan=found.plan.divided(min(actors, len(population))))
    if shared is None:
        return calibrate(population, feed, alone, known)
    together = shared.wanted(alone)
    shared.meet()  # compilers may be at work until here, and the plan waits for them
    return shared.for_one(sharing.once("plan", lambda: calibrate(population, feed, together, known)))


def wanted(config: Mapping[str, Any]) -> Wanted:
    """What is known of a run before its plan is chosen."""
    trainer, search = config["trainer"], config["search"]
    limit = trainer["memory_limit"]
    return Wanted(
        execution=trainer["execution"],
        processes=None if trainer["processes"] == "auto" else trainer["processes"],
        threads=torch.get_num_threads(),
        memory_limit=None if limit is None else int(limit * 1e9),
        samples=search["max_samples"],
        members=search["members"],
    )


def described(calibration: Calibration) -> str:
    rates = ", ".join(f"{name}: {rate:,.0f}" for name, rate in calibration.rates.items())
    origin = "known from an earlier run" if calibration.cached else f"measured in {calibration.seconds:.1f} s"
    return f"{origin}; member-samples/s: {rates}" if rates else origin


def carry(
    population: Population, trainer: Mapping[str, Any], seed: int, allocator_tuned: bool, cluster: Cluster | None = None
) -> tuple[Carried, int]:
    """The population with those of other runs, or as its plan divides it."""
    shared, plan = sharing.SHARED.get(), population.plan
    if cluster is not None:
        actors = min(processes_of(trainer, cluster), plan.shards)
        return Shards(population, actors, seed=seed, tune_allocator=allocator_tuned, cluster=cluster), actors
    if shared and plan.shards == 1:
        return shared.join(population), 1
    return divided(population, trainer, seed, allocator_tuned)


def processes_of(trainer: Mapping[str, Any], cluster: Cluster) -> int:
    """How many actors there are to be."""
    return cluster.slots() if trainer["processes"] == "auto" else int(trainer["processes"])


def divided(
    population: Population, trainer: Mapping[str, Any], seed: int, allocator_tuned: bool
) -> tuple[Population | Shards, int]:
    """The population as its plan divides it, carried by processes where there is more than one part."""
    plan = population.plan
    if plan.shards == 1:
        return population, 1
    processes = plan.processes if trainer["processes"] == "auto" else min(trainer["processes"], plan.shards)
    try:
        return Shards(population, processes, seed=seed, tune_allocator=allocator_tuned), processes
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        log.info("training stays in one process: %s", error)
        return Shards(population, 1, seed=seed), 1
