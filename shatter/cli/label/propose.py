"""Chooses which comparisons to put to people next."""

import jax
import jax.numpy as jnp
import numpy as np

from shatter import exploration
from shatter.cli.common.binary import UsageError
from shatter.cli.label.answers import check_known, read_events, standing_events
from shatter.cli.label.arms import compiled_arm, num_candidates
from shatter.cli.label.audits import draw_audits, num_audits, with_audits
from shatter.cli.label.checkpoints import checkpoint_folder
from shatter.cli.label.config import ProposeConfig
from shatter.cli.label.folder import (
    answer_file,
    import_command,
    known_queries,
    proposed,
    query_folder,
)
from shatter.cli.label.keys import Use, project_key
from shatter.cli.label.pool import draw_queries
from shatter.cli.label.project import Project, item_key, members_hash, utilities
from shatter.cli.label.queries import AUDIT, TextQuery, is_audit, write_queries
from shatter.types import item_query


def propose(project: Project, config: ProposeConfig, *, recorded: bool = False) -> list[TextQuery]:
    """Chooses a batch of queries and writes it to a file.

    As long as nobody has answered and the members and the flags are the same, the batch stays.

    Args:
      project: the project.
      config: the arm and the size of the batch.
      recorded: whether to ask only comparisons that the pool file has answers to.

    Returns:
      The batch.

    Raises:
      UsageError: if there are not enough comparisons left, or an answer or skip is about a query
        that is in no file.
    """
    queries = known_queries(project.folder)
    rounds = [query.round for query in proposed(queries).values()]
    newest = max((number for number in rounds if isinstance(number, int)), default=-1)
    digest = members_hash(project)
    batch = [query for query in queries.values() if query.round == newest]
    if _is_open(project, queries, batch) and _fits(batch, config, digest, recorded):
        return batch
    number = newest + 1
    asked = asked_items(project, queries)
    choices = _draw(project, config, asked, number, recorded)
    audits = draw_audits(config, number, len(choices))
    chosen, gains = _choose(project, config, choices, number, audits)
    batch = [
        TextQuery(
            query_id=f"r{number:04}-q{n:03}",
            prompt=project.items[choices[q][0]][0],
            completions=tuple(project.items[item][1] for item in choices[q]),
            prompt_id=(prompt_id := project.pool.prompt_ids[choices[q][0]]),
            item_ids=tuple(choices[q]),
            round=number,
            arm=AUDIT if q in audits else config.arm,
            score=float(gains[q]),
            model=digest,
            seed=config.seed,
            budget=config.num_queries,
            last_turn=project.pool.last_turn[prompt_id],
        )
        for n, q in enumerate(chosen)
    ]
    write_queries(query_folder(project.folder) / f"round_{number:04}.jsonl", batch)
    return batch


def _is_open(project: Project, queries: dict[str, TextQuery], batch: list[TextQuery]) -> bool:
    """Returns whether a batch has queries and nobody has answered any of them.

    Raises:
      UsageError: if an answer or skip is about a query that is in no file, because its name would
        otherwise be given to another query.
    """
    events = read_events(answer_file(project.folder))
    check_known(standing_events(events), queries)
    is_answered = {query.query_id for query in batch} & {event.query_id for event in events}
    return bool(batch) and not is_answered


def _fits(batch: list[TextQuery], config: ProposeConfig, digest: str, recorded: bool) -> bool:
    """Returns whether a batch was chosen by the same members and with the same flags."""
    number = batch[0].round
    assert isinstance(number, int)
    return sum(map(is_audit, batch)) == num_audits(config, number) and all(
        (query.budget, query.model) == (config.num_queries, digest)
        and query.arm in (config.arm, AUDIT)
        and (recorded or len(query.completions) == config.num_responses)
        for query in batch
    )


def asked_items(project: Project, queries: dict[str, TextQuery]) -> set[tuple[int, ...]]:
    """Returns the comparisons that were asked or imported, as sorted items; -1 is not of a pool."""
    asked = set()
    for query in queries.values():
        keys = [item_key((query.prompt, text)) for text in query.completions]
        asked.add(tuple(sorted(project.item_numbers.get(key, -1) for key in keys)))
    return asked


def _draw(
    project: Project,
    config: ProposeConfig,
    asked: set[tuple[int, ...]],
    number: int,
    recorded: bool,
) -> list[tuple[int, ...]]:
    """Returns the comparisons among which a batch is chosen.

    Raises:
      UsageError: if there are fewer than the batch needs.
    """
    choices = draw_queries(
        project.pool,
        np.random.default_rng([config.seed, number]),
        num=num_candidates(config),
        num_responses=config.num_responses,
        asked=asked,
        recorded=recorded,
    )
    if len(choices) < config.num_queries:
        lower = "lower --num_queries, or " if choices else ""
        lower = lower or ("lower --num_responses, or " if config.num_responses > 2 else "")
        raise UsageError(
            f"--num_queries={config.num_queries}: {config.pool} has {len(choices)} comparisons of "
            f"{config.num_responses} that were not asked ({len(asked)} were): "
            f"{lower}begin another project with more candidates"
        )
    return choices


def _choose(
    project: Project,
    config: ProposeConfig,
    choices: list[tuple[int, ...]],
    number: int,
    audits: list[int],
) -> tuple[list[int], np.ndarray]:
    """Returns which comparisons to ask, and the information gain of each one, nats.

    The audits are at random places among those that the arm chooses, which are in its order.
    """
    num_slots = max(map(len, choices))
    items = np.full((num_candidates(config), num_slots), -1)
    for q, choice in enumerate(choices):
        items[q, : len(choice)] = choice
    queries = item_query(jnp.asarray(items))
    values = utilities(project, np.asarray(queries.item_ids))
    if not np.isfinite(values).all():
        raise UsageError(_not_finite(project))
    log_probs = jnp.asarray(values)
    key = jax.random.fold_in(project_key(config.seed, Use.PROPOSALS), number)
    gains = np.asarray(_gains(log_probs, valid=queries.valid))
    chosen: list[int] = []
    if num_chosen := config.num_queries - len(audits):
        free = queries.valid.at[np.array(audits, int)].set(False)
        arm = compiled_arm(config, items, np.array(project.pool.prompt_ids))
        chosen = [int(q) for q in arm(key, log_probs, valid=free, num_queries=num_chosen)]
    return with_audits(config, number, chosen, audits), gains


def _not_finite(project: Project) -> str:
    """Returns the message about members whose utilities are not finite."""
    command = import_command(project.folder)
    mend = f"begin another project with a lower --prior_scale, and: {command}"
    if project.state.num_updates:
        folder = checkpoint_folder(project.folder, project.state.num_updates)
        mend = f"delete {folder} to go on from the ensemble before; or {mend}"
    return f"--project: the members' utilities are not finite, so no query can be chosen: {mend}"


_gains = jax.jit(exploration.query_information_gain)
