"""The pool: prompts, their candidate completions, and the comparisons that can be asked."""

import hashlib
from collections.abc import Sequence
from itertools import combinations
from math import comb
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shatter import data
from shatter.cli.common.binary import UsageError
from shatter.cli.common.frozen import Item
from shatter.data.files import json_line, records
from shatter.data.layouts import Text, answers_of, parsed, text_key
from shatter.data.report import SKIP_ADVICE, BadRow, Problem

Votes = dict[tuple[int, ...], float]
"""The weight of each answer, by its ranks."""


SAID = {"ranks", "ratings", "votes"}
SAYS_MORE = {"completions", "completion", "chosen", "rejected", "label", *SAID}
"""Fields of a row that is more than a prompt; whatever else a row holds is not read."""

HINT = SKIP_ADVICE  # what the reader of rows advises, which is no flag here


class Pool(NamedTuple):
    """What can be asked about.

    Attributes:
      items: the completions, each under its prompt; an item is known by its number.
      prompt_ids: of each item, the number of its prompt.
      by_prompt: the items of each prompt.
      rows: the comparisons of which the file itself says something, items `[K]`, and what.
    """

    items: list[Item]
    prompt_ids: list[int]
    by_prompt: list[list[int]]
    rows: dict[tuple[int, ...], Votes]


class PoolFile(NamedTuple):
    """What a pool file holds: prompts alone, or rows with completions."""

    prompts: list[Text]
    rows: list[data.Row]


def read_pool(path: str) -> PoolFile:
    """Reads a pool file.

    Args:
      path: JSON lines, or any file of preferences.

    Returns:
      Its rows, all of one kind.

    Raises:
      UsageError: if the file is missing, a row is bad, or a prompt has one candidate alone.
    """
    if not Path(path).is_file():
        raise UsageError(f"--pool: no file {path}")
    prompts, rows = _read(Path(path))
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
    return PoolFile(prompts, rows)


def make_pool(found: PoolFile, kept: Path) -> Pool:
    """Returns the pool of a file; where that has prompts only, of the candidates that were sampled.

    Args:
      found: what the file holds.
      kept: file of the sampled candidates.

    Returns:
      The pool.
    """
    return _pool(_read(kept)[1] if found.prompts else found.rows)


def pool_hash(path: str) -> str:
    """sha256 of the file's bytes."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _read(path: Path) -> tuple[list[Text], list[data.Row]]:
    """Returns prompts alone, and rows with completions."""
    prompts: list[Text] = []
    rows: list[data.Row] = []
    source = str(path)
    try:
        for number, raw in records(path):
            source = f"{path}:{number}"
            try:
                record = parsed(raw)
                if "prompt" in record and not SAYS_MORE & set(record):
                    blank = {"role": "assistant", "content": "."}
                    other = "." if isinstance(record["prompt"], str) else [blank]
                    found = answers_of({"prompt": record["prompt"], "completion": other})
                    prompts.append(found.prompt)
                    continue
                given = "prompt" in record and record.get("completions")
                if given and isinstance(given, list) and not SAID & set(record):
                    num = len(given)
                    found = answers_of({**record, "ranks": [0] * num})
                    found = found._replace(answers=[((0,) * num, 0.0)])
                else:
                    found = answers_of(record)
            except BadRow as error:
                text = raw if isinstance(raw, bytes) else json_line(raw)
                problem = Problem(source, text.decode("utf-8", "replace"), *error.args)
                raise UsageError(str(problem)) from None
            for ranks, weight in found.answers:
                row = data.Row(found.prompt, found.completions, ranks, weight, source=source)
                rows.append(row)
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(str(error)) from error
    except RecursionError as error:
        raise UsageError(
            f"{source}: expected texts, found lists that are nested too deep"
        ) from error
    if not prompts and not rows:
        raise UsageError(f"{path}: expected prompts with completions, found no row")
    return prompts, rows


def _pool(rows: Sequence[data.Row]) -> Pool:
    items: dict[str, int] = {}
    texts: list[Item] = []
    prompts: dict[str, int] = {}
    prompt_ids: list[int] = []
    compared: dict[tuple[int, ...], Votes] = {}
    for row in rows:
        prompt_id = prompts.setdefault(text_key(row.prompt), len(prompts))
        numbers = []
        for completion in row.completions:
            number = items.setdefault(f"{prompt_id} {text_key(completion)}", len(items))
            if number == len(texts):
                texts.append((row.prompt, completion))
                prompt_ids.append(prompt_id)
            numbers.append(number)
        if len(numbers) > 1 and row.weight > 0:  # no weight: nothing was said
            _add_votes(compared, numbers, row.ranks, row.weight)
    by_prompt: list[list[int]] = [[] for _ in prompts]
    for number, prompt_id in enumerate(prompt_ids):
        by_prompt[prompt_id].append(number)
    return Pool(texts, prompt_ids, by_prompt, compared)


def _add_votes(
    compared: dict[tuple[int, ...], Votes],
    numbers: Sequence[int],
    ranks: Sequence[int],
    weight: float,
) -> None:
    """Adds a row's weight to its comparison, whatever the order of the completions."""
    order = sorted(range(len(numbers)), key=lambda k: numbers[k])
    votes = compared.setdefault(tuple(numbers[k] for k in order), {})
    said = tuple(ranks[k] for k in order)
    votes[said] = votes.get(said, 0.0) + weight


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
    """Returns comparisons that could be asked and were not: all, or `num` drawn at random.

    A prompt is drawn in proportion to its number of items, not of comparisons, so that one with
    many candidates does not drown the others.

    Args:
      pool: the pool.
      rng: draws them.
      num: the most.
      num_responses: K.
      asked: comparisons that were asked, sorted items.
      recorded: only those of the file itself, of any K.

    Returns:
      Sorted items `[K]` of each.
    """
    if recorded:
        free = [items for items in pool.rows if items not in asked]
        chosen = rng.permutation(len(free))[:num]
        return [free[n] for n in sorted(chosen)]
    able = [items for items in pool.by_prompt if len(items) >= num_responses]
    if sum(comb(len(items), num_responses) for items in able) - len(asked) <= 2 * num:
        every = (some for items in able for some in combinations(items, num_responses))
        free = [some for some in every if some not in asked]
        return [free[n] for n in sorted(rng.permutation(len(free))[:num])]
    found: dict[tuple[int, ...], None] = {}
    weights = np.array([len(items) for items in able], float)
    while len(found) < num:
        items = able[rng.choice(len(able), p=weights / weights.sum())]
        some = tuple(sorted(int(n) for n in rng.choice(items, num_responses, replace=False)))
        if some not in asked:
            found.setdefault(some)
    return sorted(found)
