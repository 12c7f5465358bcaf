"""The pool: prompts, their candidate completions, and the comparisons that can be asked."""

import hashlib
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
from shatter.data.files import json_line, records
from shatter.data.layouts import Text, answers_of, parsed, text_key
from shatter.data.report import BadRow, Problem
from shatter.types import Array, Key, Params

Votes = dict[tuple[int, ...], float]
"""The weight of each answer, by its ranks."""


HINT = "\non_bad_row"  # what the reader of rows advises, which is no flag here


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
    """The pool of a file; where that has prompts only, of the candidates that were sampled.

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
                is_silent = not {"ranks", "ratings", "votes"} & set(record)
                if "completions" in record and is_silent:
                    num = len(record["completions"])
                    record = {**record, "ranks": [0] * num} if num else record
                    found = answers_of(record)._replace(answers=[((0,) * num, 0.0)])
                else:
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


def sample_candidates(config: Project, model: Frozen, prompts: Sequence[Text]) -> bytes:
    """Samples candidates from the pretrained model at temperature 1.

    Four times as many as wanted are drawn; kept are the first that differ, that have ended within
    `max_completion_length`, and whose text, after the prompt, the tokenizer reads back as the very
    tokens that were drawn. With utilities other than log-probs, where an end that the model did not
    write does no harm, those that were cut come after them.

    Args:
      config: of the project.
      model: the pretrained model.
      prompts: the prompts.

    Returns:
      JSON lines, a pool file.

    Raises:
      UsageError: if a prompt cannot be encoded, or has not two such responses.
    """
    ends = tuple(
        end for end in dict.fromkeys((model.tokenizer.eos, *model.config.eos)) if end is not None
    )
    lm = models.transformer(model.config)

    def sample(params: Params, key: Key, tokens: Array, valid: Array) -> documents.Samples:
        return documents.sample(
            lm,
            params,
            key,
            tokens,
            num_samples=4 * config.num_samples,
            max_length=config.max_completion_length,
            eos=ends,
            valid=valid,
        )

    jitted = jax.jit(sample, compiler_options=compiler_options())
    needs_end = config.ensemble == "adapters" and config.utility == "sum"
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    lines = []
    for number, prompt in enumerate(prompts):
        place = f"{config.pool}: prompt {number + 1}"
        row = _encoded(model, config, prompt, _as_completion(prompt, "."), place)
        length = next(b for b in data.length_buckets(config.max_length) if b >= len(row.prompt))
        tokens = np.full((1, length), row.prompt[0])
        tokens[0, length - len(row.prompt) :] = row.prompt
        valid = np.arange(length)[None] >= length - len(row.prompt)
        found = jitted(model.params, jax.random.fold_in(key, number), tokens, valid)
        ended: dict[str, None] = {}
        cut: dict[str, None] = {}
        for ids, mask in zip(np.asarray(found.tokens[0]), np.asarray(found.mask[0]), strict=True):
            said = ids[mask].tolist()
            is_ended = said[-1] in ends
            said = said[:-1] if is_ended else said
            text = _text_after(model, row.prompt.tolist(), said)
            if text.strip() and _read_back(model, config, prompt, text) == said:
                (ended if is_ended else cut).setdefault(text)
        some = list(ended if needs_end else {**ended, **cut})[: config.num_samples]
        if len(some) < 2:
            wanted = "that end within" if needs_end else "of at most"
            raise UsageError(
                f"{place}: the model gave {len(some)} different responses {wanted} "
                f"{config.max_completion_length} tokens that its tokenizer reads back: expected at "
                "least two; raise --max_completion_length or --num_samples, end the prompt where a "
                "word ends, or give candidates"
            )
        given = [_as_completion(prompt, text) for text in some]
        lines.append(json_line({"prompt": prompt, "completions": given}))
    return b"".join(lines)


def _as_completion(prompt: Text, text: str) -> Text:
    return text if isinstance(prompt, str) else ({"role": "assistant", "content": text},)


def _encoded(model: Frozen, config: Project, prompt: Text, text: Text, place: str) -> data.Encoded:
    try:
        row = data.Row(prompt, (text,), (0,), source=place)
        return data.encode_rows([row], model.tokenizer, max_length=config.max_length)[0][0]
    except ValueError as error:
        raise UsageError(str(error).split(HINT)[0]) from error


def _text_after(model: Frozen, prompt: list[int], said: list[int]) -> str:
    """The text of a response with the white space that it begins with, which decoding may eat."""
    start, whole = model.tokenizer.decode(prompt), model.tokenizer.decode([*prompt, *said])
    return whole.removeprefix(start) if whole.startswith(start) else model.tokenizer.decode(said)


def _read_back(model: Frozen, config: Project, prompt: Text, text: str) -> list[int]:
    """The tokens of a sampled text after its prompt; none where they cannot be told apart."""
    try:
        row = _encoded(model, config, prompt, _as_completion(prompt, text), "")
    except UsageError:
        return []
    return [int(token) for token in row.completions[0][:-1]]
