"""Candidate responses for a pool of prompts alone, sampled from the pretrained model."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from shatter import data, documents, models
from shatter.cli.common.binary import UsageError
from shatter.cli.common.compiling import compiler_options
from shatter.cli.common.frozen import Frozen
from shatter.cli.label.config import Project
from shatter.cli.label.pool import HINT
from shatter.data.files import json_line
from shatter.data.layouts import Text
from shatter.types import Array, Key, Params


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
    found_ends = dict.fromkeys((model.tokenizer.eos, *model.config.eos))
    ends = tuple(end for end in found_ends if end is not None)
    sample = _sampler(model.config, 4 * config.num_samples, config.max_completion_length, ends)
    needs_end = config.ensemble == "adapters" and config.utility == "sum"
    # As many tokens of a prompt as its encoding keeps beside the longest response and its end.
    longest, bos = config.max_completion_length + 1, model.tokenizer.bos
    most = max(config.max_length - longest, config.max_length // 2)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    lines = []
    for number, prompt in enumerate(prompts):
        place = f"{config.pool}: prompt {number + 1}"
        whole = _encoded(model, config, prompt, _as_completion(prompt, "."), place).prompt
        ids = data.truncate_prompt(whole, most, bos=ends[0] if bos is None else bos)
        length = next(b for b in data.length_buckets(config.max_length) if b >= len(ids))
        tokens = np.full((1, length), ids[0])
        tokens[0, length - len(ids) :] = ids
        valid = np.arange(length)[None] >= length - len(ids)
        found = sample(model.params, jax.random.fold_in(key, number), tokens, valid)
        ended: dict[str, None] = {}
        cut: dict[str, None] = {}
        for drawn, mask in zip(np.asarray(found.tokens[0]), np.asarray(found.mask[0]), strict=True):
            said = drawn[mask].tolist()
            is_ended = said[-1] in ends
            said = said[:-1] if is_ended else said
            text = _text_after(model, ids, said)
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


@functools.cache
def _sampler(
    config: models.TransformerConfig, num_samples: int, max_length: int, ends: tuple[int, ...]
) -> Callable[..., documents.Samples]:
    """Compiles, once, `(params, key, tokens[1, P], valid[1, P]) -> samples`."""

    def sample(params: Params, key: Key, tokens: Array, valid: Array) -> documents.Samples:
        return documents.sample(
            models.transformer(config),
            params,
            key,
            tokens,
            num_samples=num_samples,
            max_length=max_length,
            eos=ends,
            valid=valid,
        )

    return jax.jit(sample, compiler_options=compiler_options())


def _as_completion(prompt: Text, text: str) -> Text:
    return text if isinstance(prompt, str) else ({"role": "assistant", "content": text},)


def _encoded(model: Frozen, config: Project, prompt: Text, text: Text, place: str) -> data.Encoded:
    try:
        row = data.Row(prompt, (text,), (0,), source=place)
        return data.encode_rows([row], model.tokenizer, max_length=config.max_length)[0][0]
    except ValueError as error:
        raise UsageError(str(error).split(HINT)[0]) from error


def _text_after(model: Frozen, prompt: list[int], said: list[int]) -> str:
    """Returns the text of a response with the white space before it, which decoding may eat."""
    start, whole = model.tokenizer.decode(prompt), model.tokenizer.decode([*prompt, *said])
    return whole.removeprefix(start) if whole.startswith(start) else model.tokenizer.decode(said)


def _read_back(model: Frozen, config: Project, prompt: Text, text: str) -> list[int]:
    """Returns the tokens of a sampled text after its prompt; none if they cannot be told apart."""
    try:
        row = _encoded(model, config, prompt, _as_completion(prompt, text), "")
    except UsageError:
        return []
    return [int(token) for token in row.completions[0][:-1]]
