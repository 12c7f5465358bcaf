"""Candidate responses for a pool of prompts alone, sampled from the pretrained model."""

from collections.abc import Sequence

import jax
import numpy as np

from shatter import data, documents, models
from shatter.cli.common.binary import UsageError
from shatter.cli.common.frozen import Frozen
from shatter.cli.common.sampling import Sampling, make_sampler, response_text
from shatter.cli.label.config import ProjectConfig
from shatter.cli.label.keys import Use, project_key
from shatter.cli.label.pool_file import without_advice
from shatter.data.files import json_line
from shatter.data.layouts import Text


def sample_candidates(config: ProjectConfig, model: Frozen, prompts: Sequence[Text]) -> bytes:
    """Samples candidate responses from the pretrained model at temperature 1.

    Four times as many as wanted are drawn. Those are kept that differ, that ended within
    `max_completion_length` and whose text, after the prompt, the tokenizer encodes as the very
    tokens that were drawn; the first of them are the candidates. Where utilities are no sums over
    tokens, so that the end, which the model need not have written, is one of many in a mean or is
    not scored, responses that were cut come after them.

    Args:
      config: the project's flags.
      model: the pretrained model.
      prompts: the prompts.

    Returns:
      A pool file: JSON lines.

    Raises:
      UsageError: if a prompt cannot be encoded, or does not get two such responses.
    """
    ends = models.end_tokens(model.config, model.tokenizer)
    sampling = Sampling(4 * config.num_samples, config.max_completion_length, ends)
    sample = make_sampler(model.config, sampling)
    needs_end = config.ensemble == "adapters" and config.utility in ("sum", "tilt")
    key = project_key(config.seed, Use.CANDIDATES)
    lines = []
    for number, prompt in enumerate(prompts):
        place = f"{config.pool}: prompt {number + 1}"
        ids = _prompt_ids(config, model, prompt, ends, place)
        length = next(b for b in data.length_buckets(config.max_length) if b >= len(ids))
        tokens = np.full((1, length), ids[0])
        tokens[0, length - len(ids) :] = ids
        valid = np.arange(length)[None] >= length - len(ids)
        keys = jax.random.fold_in(key, number)[None]
        samples = sample(model.params, keys, tokens, valid)
        ended, cut = _readable_texts(config, model, prompt, ids, samples, ends)
        texts = list(ended if needs_end else {**ended, **cut})[: config.num_samples]
        if len(texts) < 2:
            wanted = "that end within" if needs_end else "of at most"
            raise UsageError(
                f"{place}: the model gave {len(texts)} different responses {wanted} "
                f"{config.max_completion_length} tokens that its tokenizer reads back: expected at "
                "least two; raise --max_completion_length or --num_samples, end the prompt where a "
                "word ends, or give candidates"
            )
        completions = [_as_completion(prompt, text) for text in texts]
        lines.append(json_line({"prompt": prompt, "completions": completions}))
    return b"".join(lines)


def _prompt_ids(
    config: ProjectConfig, model: Frozen, prompt: Text, ends: tuple[int, ...], place: str
) -> list[int]:
    """Returns as many of a prompt's tokens as its encoding keeps beside the longest response."""
    longest, bos = config.max_completion_length + 1, model.tokenizer.bos
    most = max(config.max_length - longest, config.max_length // 2)
    whole = _encoded(model, config, prompt, _as_completion(prompt, "."), place).prompt
    return data.truncate_prompt(whole, most, bos=ends[0] if bos is None else bos)


def _readable_texts(
    config: ProjectConfig,
    model: Frozen,
    prompt: Text,
    ids: list[int],
    samples: documents.Samples,
    ends: tuple[int, ...],
) -> tuple[dict[str, None], dict[str, None]]:
    """Returns the texts of samples that the tokenizer encodes as the tokens that were drawn.

    Returns:
      The different texts that ended, and those that were cut, as the keys of dicts.
    """
    ended: dict[str, None] = {}
    cut: dict[str, None] = {}
    arrays = np.asarray(samples.tokens[0]), np.asarray(samples.mask[0])
    for tokens, mask in zip(*arrays, strict=True):
        response = tokens[mask].tolist()
        is_ended = response[-1] in ends
        response = response[:-1] if is_ended else response
        text = response_text(model.tokenizer.decode, ids, response)
        if text.strip() and _tokens_of(model, config, prompt, text) == response:
            (ended if is_ended else cut).setdefault(text)
    return ended, cut


def _as_completion(prompt: Text, text: str) -> Text:
    return text if isinstance(prompt, str) else ({"role": "assistant", "content": text},)


def _encoded(
    model: Frozen, config: ProjectConfig, prompt: Text, text: Text, place: str
) -> data.Encoded:
    try:
        row = data.Row(prompt, (text,), (0,), source=place)
        return data.encode_rows([row], model.tokenizer, max_length=config.max_length)[0][0]
    except ValueError as error:
        raise UsageError(without_advice(error)) from error


def _tokens_of(model: Frozen, config: ProjectConfig, prompt: Text, text: str) -> list[int]:
    """Returns the tokens of a text after its prompt; none if the text cannot be encoded."""
    try:
        row = _encoded(model, config, prompt, _as_completion(prompt, text), "")
    except UsageError:
        return []
    return [int(token) for token in row.completions[0][:-1]]
