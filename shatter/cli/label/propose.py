"""Which comparisons to put to people next."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from shatter import exploration
from shatter.cli.common.binary import UsageError
from shatter.cli.label.answers import check_known, read_events, standing_events
from shatter.cli.label.checkpoints import checkpoint_folder
from shatter.cli.label.config import ArmName, Propose, explorer
from shatter.cli.label.folder import (
    answer_file,
    import_command,
    known_queries,
    proposed,
    query_folder,
)
from shatter.cli.label.pool import draw_queries
from shatter.cli.label.project import Bench, item_key, members_hash, utilities
from shatter.cli.label.queries import Asked, write_queries


def propose(bench: Bench, config: Propose, *, recorded: bool = False) -> list[Asked]:
    """Chooses a batch and writes it down.

    Until somebody has answered, or the members or the flags are others, the batch stays.

    Args:
      bench: the project.
      config: the arm and its batch.
      recorded: whether only the pool file's own comparisons are asked.

    Returns:
      The batch.

    Raises:
      UsageError: if there are not enough comparisons left, or an answer or skip is about a query
        that no file has.
    """
    queries = known_queries(bench.folder)
    rounds = [query.round for query in proposed(queries).values()]
    number = max((r for r in rounds if isinstance(r, int)), default=-1)
    newest = [query for query in queries.values() if query.round == number]
    events = read_events(answer_file(bench.folder))
    check_known(standing_events(events), queries)  # names of queries that have gone are not free
    digest = members_hash(bench)
    is_open = not {query.query_id for query in newest} & {event.query_id for event in events}
    if (
        newest
        and is_open
        and all(
            (query.arm, query.budget, query.model) == (config.arm, config.num_queries, digest)
            and (recorded or len(query.completions) == config.num_responses)
            for query in newest
        )
    ):
        return newest
    number += 1
    asked = asked_items(bench, queries)
    rng = np.random.default_rng([config.seed, number])
    found = draw_queries(
        bench.pool,
        rng,
        num=config.num_candidates,
        num_responses=config.num_responses,
        asked=asked,
        recorded=recorded,
    )
    if len(found) < config.num_queries:
        lower = "lower --num_queries, or " if found else ""
        lower = lower or ("lower --num_responses, or " if config.num_responses > 2 else "")
        raise UsageError(
            f"--num_queries={config.num_queries}: {config.pool} has {len(found)} comparisons of "
            f"{config.num_responses} that were not asked ({len(asked)} were): "
            f"{lower}begin another project with more candidates"
        )
    chosen, gains = _choose(bench, config, found, number)
    batch = [
        Asked(
            query_id=f"r{number:04}-q{n:03}",
            prompt=bench.items[found[q][0]][0],
            completions=tuple(bench.items[item][1] for item in found[q]),
            prompt_id=bench.pool.prompt_ids[found[q][0]],
            item_ids=tuple(found[q]),
            round=number,
            arm=config.arm,
            score=float(gains[q]),
            model=digest,
            seed=config.seed,
            budget=config.num_queries,
        )
        for n, q in enumerate(chosen)
    ]
    write_queries(query_folder(bench.folder) / f"round_{number:04}.jsonl", batch)
    return batch


def _astray(bench: Bench) -> str:
    """Returns what to do about members whose utilities are not finite."""
    again = f"begin another project with a lower --prior_scale, and: {import_command(bench.folder)}"
    if bench.ensemble.number:
        folder = checkpoint_folder(bench.folder, bench.ensemble.number)
        again = f"delete {folder} to go on from the ensemble before; or {again}"
    return (
        f"--project: the members' utilities are not finite, so that nothing can be chosen: {again}"
    )


def asked_items(bench: Bench, queries: dict[str, Asked]) -> set[tuple[int, ...]]:
    """Returns the comparisons of the pool that were asked or imported, as sorted items."""
    found = set()
    for query in queries.values():
        keys = [item_key((query.prompt, text)) for text in query.completions]
        found.add(tuple(sorted(bench.numbers.get(key, -1) for key in keys)))
    return found


def _choose(
    bench: Bench, config: Propose, found: list[tuple[int, ...]], number: int
) -> tuple[list[int], np.ndarray]:
    """Returns the chosen ones of some comparisons, and what each tells alone, nats."""
    num_slots = max(map(len, found))
    items = np.full((config.num_candidates, num_slots), -1)
    for q, some in enumerate(found):
        items[q, : len(some)] = some
    valid = jnp.asarray(items >= 0)
    found_utilities = utilities(bench, np.maximum(items, 0))
    if not np.isfinite(found_utilities).all():
        raise UsageError(_astray(bench))
    log_probs = jnp.asarray(found_utilities)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 5), number)
    arm = _compiled(config.arm, config.temperature)
    chosen = arm(key, log_probs, valid=valid, num_queries=config.num_queries)
    return [int(q) for q in chosen], np.asarray(_gains(log_probs, valid=valid))


@functools.cache
def _compiled(arm: ArmName, temperature: float) -> Callable[..., jax.Array]:
    return jax.jit(explorer(arm, temperature), static_argnames="num_queries")


_gains = jax.jit(exploration.query_information_gain)
