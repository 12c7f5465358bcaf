"""Truncates documents that are too long, by one rule for training and sampling."""

from collections.abc import Sequence

import numpy as np

from shatter.data.report import BadRow


def truncate_prompt(ids: Sequence[int] | np.ndarray, limit: int, *, bos: int | None) -> list[int]:
    """Shortens a prompt to `limit` tokens by removing the first ones after BOS.

    Training and sampling both shorten prompts by this function, so that a model answers the same
    tokens from which it learned.

    Args:
      ids: the prompt, `[P]`, at least one token.
      limit: the largest number of tokens, at least 1.
      bos: the token that begins documents: the tokenizer's BOS, or its EOS if it has no BOS. If the
        prompt begins with another token, that is not kept.

    Returns:
      The last `limit` tokens, or BOS and the last `limit - 1`.

    Raises:
      ValueError: if `limit` is below 1 or the prompt is empty.
    """
    tokens = [int(token) for token in ids]
    if limit < 1 or not tokens:
        raise ValueError(
            f"expected a prompt of at least one token and a limit >= 1, found {len(tokens)} tokens "
            f"and a limit of {limit}"
        )
    if len(tokens) <= limit:
        return tokens
    head = tokens[:1] if tokens[0] == bos else []
    return head + tokens[len(tokens) - limit + len(head) :]


def truncate_document(
    prompt: Sequence[int],
    completions: Sequence[Sequence[int]],
    *,
    max_length: int,
    max_prompt_length: int | None,
    bos: int,
    eos: int,
) -> tuple[list[int], list[list[int]]]:
    """Shortens the prompt and then the completions, so that every document fits.

    The prompt keeps `max_prompt_length` tokens; if that is None, as many as the longest completion
    leaves, but at least half of `max_length`. Completions lose their last tokens before EOS.

    Args:
      prompt: `[P]`, at least one token.
      completions: K completions, `[C_k]`, each ending with EOS.
      max_length: the largest number of tokens of prompt and completion.
      max_prompt_length: the largest number of prompt tokens; None = as above.
      bos: the token that begins documents.
      eos: the token that ends them.

    Returns:
      The prompt and the completions.

    Raises:
      BadRow: if no room is left for one token of a completion and EOS.
    """
    longest = max(map(len, completions))
    limit = max_prompt_length or max(max_length - longest, max_length // 2)
    short = truncate_prompt(prompt, limit, bos=bos)
    room = max_length - len(short)
    if room < 2:
        raise BadRow(
            "completion",
            f"room for a token and EOS in max_length = {max_length}",
            f"{len(short)} prompt tokens and a completion of {longest}",
            "raise max_length or lower max_prompt_length",
        )
    return short, [
        list(ids) if len(ids) <= room else [*ids[: room - 1], eos] for ids in completions
    ]
