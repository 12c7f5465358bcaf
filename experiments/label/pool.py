"""The pool: prompts, their candidate completions, and the comparisons that can be asked."""

import hashlib
import json
from collections.abc import Sequence
from itertools import combinations
from math import comb
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from experiments.common.binary import UsageError
from experiments.common.chunks import compiler_options
from experiments.common.frozen import Frozen, Item
from experiments.label.config import Project
from shatter import data, documents, models
from shatter.data.files import json_line, records, write_atomically
from shatter.data.layouts import Text, answers_of, parsed, text_key
from shatter.data.report import BadRow, Problem
from shatter.types import Array, Key, Params

Votes = dict[tuple[int, ...], float]
"""The weight of each answer, by its ranks."""


class Pool(NamedTuple):
    """What can be asked about.

    Attributes:
      items: the completions, each under its prompt; an item is known by its number.
      prompt_ids: of each item, the number of its prompt.
      by_prompt: the items of each prompt.
      rows: the comparisons that the file itself has, items `[K]`, and what was said of them.
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


def make_pool(config: Project, model: Frozen, found: PoolFile, folder: Path) -> Pool:
    """The pool of a file; where that has prompts only, candidates are sampled once and kept.

    Args:
      config: of the project.
      model: the pretrained model.
      found: what the file holds.
      folder: of the project.

    Returns:
      The pool.

    Raises:
      UsageError: if the model has not two different responses to a prompt.
    """
    if not found.prompts:
        return _pool(found.rows)
    kept = folder / "candidates.jsonl"
    if not kept.exists():
        _write_candidates(kept, config, model, found.prompts)
    return _pool(_read(kept)[1])


def pool_hash(path: str) -> str:
    """sha256 of the file's bytes."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _read(path: Path) -> tuple[list[Text], list[data.Row]]:
    """Prompts alone, and rows with completions."""
    prompts: list[Text] = []
    rows: list[data.Row] = []
    try:
        for number, raw in records(path):
            source = f"{path}:{number}"
            try:
                record = parsed(raw)
                if set(record) <= {"prompt", "annotator", "group"} and "prompt" in record:
                    blank = {"role": "assistant", "content": "."}
                    other = "." if isinstance(record["prompt"], str) else [blank]
                    found = answers_of({"prompt": record["prompt"], "completion": other})
                    prompts.append(found.prompt)
                    continue
                if "completions" in record and not {"ranks", "ratings", "votes"} & set(record):
                    num = len(record["completions"])
                    record = {**record, "ranks": [0] * num} if num else record
                found = answers_of(record)
            except BadRow as error:
                text = raw if isinstance(raw, bytes) else json_line(raw)
                problem = Problem(source, text.decode("utf-8", "replace"), *error.args)
                raise UsageError(str(problem)) from None
            for ranks, weight in found.answers:
                row = data.Row(found.prompt, found.completions, ranks, weight, source=source)
                rows.append(row)
    except (ValueError, ImportError) as error:
        raise UsageError(str(error)) from error
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
        if len(numbers) > 1:
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
    """The same completions in another order are the same comparison."""
    order = sorted(range(len(numbers)), key=lambda k: numbers[k])
    votes = compared.setdefault(tuple(numbers[k] for k in order), {})
    said = tuple(ranks[k] for k in order)
    votes[said] = votes.get(said, 0.0) + weight


def draw_queries(
    pool: Pool,
    rng: np.random.Generator,
    *,
    num: int,
    num_responses: int,
    asked: set[tuple[int, ...]],
    recorded: bool,
) -> list[tuple[int, ...]]:
    """Comparisons that could be asked and were not: all, or `num` drawn at random.

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


def _write_candidates(path: Path, config: Project, model: Frozen, prompts: Sequence[Text]) -> None:
    """Samples candidates from the pretrained model at temperature 1, the same ones once."""
    ends = tuple(dict.fromkeys((model.tokenizer.eos, *model.config.eos)))
    lm = models.transformer(model.config)

    def sample(params: Params, key: Key, tokens: Array, valid: Array) -> documents.Samples:
        return documents.sample(
            lm,
            params,
            key,
            tokens,
            num_samples=4 * config.num_samples,
            max_length=config.max_completion_length,
            eos=tuple(end for end in ends if end is not None),
            valid=valid,
        )

    jitted = jax.jit(sample, compiler_options=compiler_options())
    blanks = ["." if isinstance(prompt, str) else _DOT for prompt in prompts]
    rows = [data.Row(p, (blank,), (0,)) for p, blank in zip(prompts, blanks, strict=True)]
    encoded, _ = data.encode_rows(rows, model.tokenizer, max_length=config.max_length)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    lines = []
    for number, row in enumerate(encoded):
        length = next(b for b in data.length_buckets(config.max_length) if b >= len(row.prompt))
        tokens = np.full((1, length), row.prompt[0])
        tokens[0, length - len(row.prompt) :] = row.prompt
        valid = np.arange(length)[None] >= length - len(row.prompt)
        found = jitted(model.params, jax.random.fold_in(key, number), tokens, valid)
        texts: dict[str, None] = {}
        for ids, mask in zip(np.asarray(found.tokens[0]), np.asarray(found.mask[0]), strict=True):
            text = model.tokenizer.decode([int(i) for i in ids[mask] if int(i) not in ends])
            if text.strip():
                texts.setdefault(text)
        if len(texts) < 2:
            raise UsageError(
                f"{config.pool}: prompt {number}: the model answers {list(texts)} only: expected "
                "two different responses; raise --max_completion_length, or give candidates"
            )
        some = list(texts)[: config.num_samples]
        prompt = prompts[number]
        given = some if isinstance(prompt, str) else [[{**_DOT[0], "content": t}] for t in some]
        lines.append(json.dumps({"prompt": prompt, "completions": given}, ensure_ascii=False))
    write_atomically(path, "".join(line + "\n" for line in lines).encode())


_DOT = ({"role": "assistant", "content": "."},)
