"""The pool: prompts, their candidate completions, and the comparisons that can be asked."""

from collections.abc import Sequence
from itertools import combinations
from math import comb
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shatter import data
from shatter.cli.common.binary import UsageError
from shatter.cli.common.frozen import Item
from shatter.cli.label.pool_file import PoolFile, read_pool_file
from shatter.data.layouts import text_key

Votes = dict[tuple[int, ...], float]
"""The weight of each answer to a comparison, by the answer's ranks."""


class Pool(NamedTuple):
    """The texts and comparisons that can be asked about.

    Attributes:
      items: the completions, each with its prompt; an item is referred to by its number here.
      prompt_ids: of each item, the number of its prompt.
      by_prompt: of each prompt, its items.
      rows: the comparisons that the file itself has answers to, items `[K]`, with their answers.
      last_turn: of each prompt, whether a choice is about the last message of a completion alone.
    """

    items: list[Item]
    prompt_ids: list[int]
    by_prompt: list[list[int]]
    rows: dict[tuple[int, ...], Votes]
    last_turn: list[bool]


def read_pool(path: str) -> PoolFile:
    """Reads a pool file.

    Args:
      path: JSON lines, or any file of preferences.

    Returns:
      Its content.

    Raises:
      UsageError: if the file is missing, a row is bad, some rows have completions and others have
        none, or a prompt has a single candidate.
    """
    if not Path(path).is_file():
        raise UsageError(f"--pool: no file {path}")
    content = read_pool_file(Path(path))
    prompts, rows = content
    if prompts and rows:
        raise UsageError(
            f"{path}: {len(prompts)} rows have a prompt only and {len(rows)} have completions: "
            "expected one or the other in all rows"
        )
    pool = _pool(rows)
    for prompt_id, items in enumerate(pool.by_prompt):
        if len(items) < 2:
            source = next(row.source for row in rows if row.prompt == pool.items[items[0]][0])
            raise UsageError(
                f"{source}: completions: expected at least two candidates for a prompt, found one "
                f"for prompt {prompt_id}; add another, leave the row out, or leave completions out "
                "of all rows to have them sampled"
            )
    return content


def make_pool(content: PoolFile, candidates: Path) -> Pool:
    """Returns the pool of a file.

    Args:
      content: the file's content.
      candidates: the file of sampled candidates, which is read if `content` has prompts alone.

    Returns:
      The pool.
    """
    return _pool(read_pool_file(candidates).rows if content.prompts else content.rows)


def _pool(rows: Sequence[data.Row]) -> Pool:
    """Returns the pool of rows with completions."""
    numbers: dict[str, int] = {}
    items: list[Item] = []
    prompts: dict[str, int] = {}
    prompt_ids: list[int] = []
    compared: dict[tuple[int, ...], Votes] = {}
    last_turn: list[bool] = []
    for row in rows:
        prompt_id = prompts.setdefault(text_key(row.prompt), len(prompts))
        last_turn += [False] * (prompt_id == len(last_turn))
        last_turn[prompt_id] |= row.last_turn
        row_items = []
        for completion in row.completions:
            number = numbers.setdefault(f"{prompt_id} {text_key(completion)}", len(numbers))
            if number == len(items):
                items.append((row.prompt, completion))
                prompt_ids.append(prompt_id)
            row_items.append(number)
        if len(row_items) > 1 and row.weight > 0:  # weight 0 is a row without a preference
            _add_votes(compared, row_items, row.ranks, row.weight)
    by_prompt: list[list[int]] = [[] for _ in prompts]
    for number, prompt_id in enumerate(prompt_ids):
        by_prompt[prompt_id].append(number)
    return Pool(items, prompt_ids, by_prompt, compared, last_turn)


def _add_votes(
    compared: dict[tuple[int, ...], Votes],
    items: Sequence[int],
    ranks: Sequence[int],
    weight: float,
) -> None:
    """Adds a row's weight to its comparison, which does not depend on the completions' order."""
    order = sorted(range(len(items)), key=lambda k: items[k])
    votes = compared.setdefault(tuple(items[k] for k in order), {})
    sorted_ranks = tuple(ranks[k] for k in order)
    votes[sorted_ranks] = votes.get(sorted_ranks, 0.0) + weight


def num_comparisons(pool: Pool, num_responses: int, *, recorded: bool) -> int:
    """Returns how many comparisons of `num_responses` a pool has; recorded ones may have any K."""
    if recorded:
        return len(pool.rows)
    return sum(comb(len(items), num_responses) for items in pool.by_prompt)


def draw_queries(
    pool: Pool,
    rng: np.random.Generator,
    *,
    num: int,
    num_responses: int,
    asked: set[tuple[int, ...]],
    recorded: bool,
) -> list[tuple[int, ...]]:
    """Returns comparisons that were not asked yet: all of them, or `num` drawn at random.

    A prompt is drawn in proportion to its number of items, and not of comparisons, so that one with
    many candidates does not crowd out the others.

    Args:
      pool: the pool.
      rng: the random generator.
      num: how many at most.
      num_responses: K.
      asked: the comparisons that were asked, as sorted items.
      recorded: whether to draw only comparisons that the file has answers to, of any K.

    Returns:
      The sorted items `[K]` of each comparison.
    """
    if recorded:
        free = [items for items in pool.rows if items not in asked]
        chosen = rng.permutation(len(free))[:num]
        return [free[n] for n in sorted(chosen)]
    able = [items for items in pool.by_prompt if len(items) >= num_responses]
    if sum(comb(len(items), num_responses) for items in able) - len(asked) <= 2 * num:
        every = (query for items in able for query in combinations(items, num_responses))
        free = [query for query in every if query not in asked]
        return [free[n] for n in sorted(rng.permutation(len(free))[:num])]
    drawn: set[tuple[int, ...]] = set()
    weights = np.array([len(items) for items in able], float)
    while len(drawn) < num:
        items = able[rng.choice(len(able), p=weights / weights.sum())]
        query = tuple(sorted(int(n) for n in rng.choice(items, num_responses, replace=False)))
        if query not in asked:
            drawn.add(query)
    return sorted(drawn)
