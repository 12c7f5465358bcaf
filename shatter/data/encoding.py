"""Encodes rows of text as tokens: the prompt once, and every completion with one EOS at its end."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shatter.data.rendering import (
    Encoding,
    TextTokenizer,
    document_ids,
    make_encoding,
    start_text,
    with_bos,
)
from shatter.data.report import (
    BadRow,
    OnBadRow,
    Problem,
    Report,
    RowsError,
    raw_text,
    settle,
)
from shatter.data.rows import Row, record_of
from shatter.data.truncation import truncate_document, truncate_prompt

_UNLIMITED = 2**30


class Encoded(NamedTuple):
    """A row as tokens.

    Attributes:
      prompt: int32 `[P]`, at least one token.
      completions: K arrays, int32 `[C_k]`, each ending with EOS.
      ranks: K ranks; smaller is better, equal = unresolved, < 0 = not shown.
      weight: how much the answer counts.
      votes: how many people chose each completion, as in `Row`.
      row: the row that was encoded.
      skipped: how many of the first tokens of each completion the loss leaves out, those of turns
        before the last one; empty if none are left out.
    """

    prompt: np.ndarray
    completions: tuple[np.ndarray, ...]
    ranks: tuple[int, ...]
    weight: float
    votes: tuple[float, ...] | None
    row: Row
    skipped: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """The number of tokens of the longest document, prompt included."""
        return len(self.prompt) + max(map(len, self.completions))


def encode_rows(
    rows: Sequence[Row],
    tokenizer: TextTokenizer,
    *,
    max_length: int,
    max_prompt_length: int | None = None,
    on_bad_row: OnBadRow = "fail",
    bad_rows_path: str | Path | None = None,
    report: Report | None = None,
) -> tuple[list[Encoded], Report]:
    """Encodes prompt and completion as one text, which is then cut after the prompt's tokens.

    A document begins with BOS if the tokenizer adds it or the prompt is empty, or with EOS if there
    is no BOS. A document that is too long first loses prompt tokens on the left, after BOS (see
    `truncate_prompt`): the prompt is cut to `max_prompt_length`, or as far as the longest
    completion needs, but at least half of `max_length` is left to it. Then completions lose tokens
    on the right, before EOS. A row whose prompt says more than that of its `origin` is bad if it is
    too long.

    Rows that were made from one row to say who answers stand and fall together with it: the bad
    rows of the report are the origins, each once, and so are the rows that it counts.

    The loss counts the whole completion with its EOS, including messages of tools and users in it;
    in a row with `last_turn` only the last message of the completion.

    Args:
      rows: the rows.
      tokenizer: the tokenizer of the model.
      max_length: the largest number of tokens of a document, at least 3.
      max_prompt_length: the largest number of tokens of a prompt.
      on_bad_row: "fail" raises RowsError with the first bad row; "skip" leaves bad rows out.
      bad_rows_path: the file to which "skip" writes the bad rows with the reasons, those of
        `report` included, as JSON lines.
      report: the report of reading the rows, which the returned one continues.

    Returns:
      The encoded rows, in order, and the report.

    Raises:
      RowsError: if a row is bad and `on_bad_row` is "fail", no good row is left, the tokenizer has
        no EOS, or it has no chat template and a row is a conversation.
      ValueError: if a length is too small.
    """
    if max_length < 3 or (max_prompt_length is not None and max_prompt_length < 1):
        raise ValueError(
            "expected max_length >= 3 (BOS, a token, EOS) and max_prompt_length >= 1, found "
            f"{max_length} and {max_prompt_length}"
        )
    encoding = make_encoding(tokenizer, max_length, max_prompt_length)
    return _encode(rows, encoding, _encoded, on_bad_row, bad_rows_path, report)


def encode_prompts(
    rows: Sequence[Row],
    tokenizer: TextTokenizer,
    *,
    max_prompt_length: int | None = None,
    on_bad_row: OnBadRow = "fail",
    report: Report | None = None,
) -> tuple[list[Encoded], Report]:
    """Encodes prompts that a model will complete; what completions the rows have is not read.

    A prompt is encoded alone, as it is where a model answers, so that its last word may be one that
    a completion would change (`story.` before `.`). It begins and is cut as in `encode_rows`.

    Args:
      rows: the rows.
      tokenizer: the tokenizer of the model.
      max_prompt_length: the largest number of tokens of a prompt; None = all are kept.
      on_bad_row: as in `encode_rows`.
      report: the report of reading the rows, which the returned one continues.

    Returns:
      The prompts, each with EOS as its only completion, and the report.

    Raises:
      RowsError: as `encode_rows`.
      ValueError: if `max_prompt_length` is below 1.
    """
    if max_prompt_length is not None and max_prompt_length < 1:
        raise ValueError(f"expected max_prompt_length >= 1, found {max_prompt_length}")
    encoding = make_encoding(tokenizer, _UNLIMITED, max_prompt_length)
    return _encode(rows, encoding, _encoded_prompt, on_bad_row, None, report)


def _encode(
    rows: Sequence[Row],
    encoding: Encoding,
    encode: Callable[[Row, Encoding], tuple[Encoded, tuple[int, ...]]],
    on_bad_row: OnBadRow,
    bad_rows_path: str | Path | None,
    report: Report | None,
) -> tuple[list[Encoded], Report]:
    """Encodes rows one by one; see `encode_rows`."""
    found: list[tuple[Encoded, tuple[int, ...]]] = []
    problems: list[Problem] = []
    bad: set[int] = set()
    for row in rows:
        origin = row.origin or row
        try:
            found.append(encode(row, encoding))
        except BadRow as error:
            if row.origin is None or id(origin) not in bad:
                problems.append(Problem(row.source, raw_text(record_of(origin)), *error.args))
            bad.add(id(origin))
    found = [(e, lost) for e, lost in found if id(e.row.origin or e.row) not in bad]
    encoded, lost = [e for e, _ in found], [lost for _, lost in found]
    report = _with_counts(report or Report(read=len(rows)), encoded, problems, lost)
    settle(report, len(problems), on_bad_row, bad_rows_path)
    return encoded, report


def _with_counts(
    report: Report, encoded: list[Encoded], problems: list[Problem], lost: list[tuple[int, ...]]
) -> Report:
    """Returns the report with the counts of encoding.

    Args:
      report: the report of reading the rows.
      encoded: the rows that could be encoded.
      problems: the problems of the others.
      lost: how many tokens the prompt and each completion have lost, for every encoded row.
    """
    rows = [row.row for row in encoded]
    plain = [id(row) for row in rows if row.origin is None]
    others = {id(row.origin) for row in rows if row.origin is not None}.difference(plain)
    return report._replace(
        kept=len(plain) + len(others),
        skipped=report.skipped + len(problems),
        truncated_prompts=sum(of_prompt > 0 for of_prompt, *_ in lost),
        truncated_completions=sum(count > 0 for _, *counts in lost for count in counts),
        truncated_tokens=sum(map(sum, lost)),
        tokens=sum(len(row.prompt) + len(c) for row in encoded for c in row.completions),
        problems=report.problems + tuple(problems),
    )


def _encoded(row: Row, encoding: Encoding) -> tuple[Encoded, tuple[int, ...]]:
    """Encodes a row; also returns how many tokens its prompt and each completion have lost."""
    try:
        documents = [document_ids(row.prompt, c, row.last_turn, encoding) for c in row.completions]
    except RowsError:
        raise
    except ValueError as error:  # from the tokenizer
        raise BadRow("row", "texts that the tokenizer can encode", str(error)) from error
    prompt, completions = documents[0][0], [completion for _, completion, _ in documents]
    prompt = with_bos(prompt, encoding)
    short, cut = truncate_document(
        prompt,
        completions,
        max_length=encoding.max_length,
        max_prompt_length=encoding.max_prompt_length,
        bos=encoding.bos,
        eos=encoding.eos,
    )
    says_who = row.origin is not None and row.origin.prompt != row.prompt
    if says_who and len(short) < len(prompt):
        limit = "max_length" if encoding.max_prompt_length is None else "max_prompt_length"
        raise BadRow(
            "prompt",
            f"room for a prompt that says who answers, {len(prompt)} tokens, in {limit} = "
            f"{getattr(encoding, limit)}",
            f"room for {len(short)} beside a completion of {max(map(len, completions))} tokens",
            f"raise {limit}, or leave out its group or annotator",
        )
    _assert_distinct(cut)
    skipped = tuple(number for *_, number in documents)
    for k, (ids, number) in enumerate(zip(cut, skipped, strict=True)):
        if number and len(ids) < number + 2:
            raise BadRow(
                f"completions[{k}]",
                f"room for its last turn in max_length = {encoding.max_length}",
                f"{len(short)} prompt tokens and {number} of the turns before it",
                "raise max_length",
            )
    before, after = (prompt, *completions), (short, *cut)
    arrays = [np.asarray(ids, np.int32) for ids in after]
    about = row.ranks, row.weight, row.votes, row, skipped if any(skipped) else ()
    lost = tuple(len(a) - len(b) for a, b in zip(before, after, strict=True))
    return Encoded(arrays[0], tuple(arrays[1:]), *about), lost


def _encoded_prompt(row: Row, encoding: Encoding) -> tuple[Encoded, tuple[int, ...]]:
    """Encodes the prompt of a row; also returns how many tokens it has lost."""
    try:
        start = start_text(row.prompt, encoding.tokenizer)
        prompt = list(encoding.encode(start)) if start else []
    except RowsError:
        raise
    except ValueError as error:  # from the tokenizer
        raise BadRow("prompt", "a text that the tokenizer can encode", str(error)) from error
    prompt = with_bos(prompt, encoding)
    limit = encoding.max_prompt_length or len(prompt)
    short = np.asarray(truncate_prompt(prompt, limit, bos=encoding.bos), np.int32)
    eos = np.asarray([encoding.eos], np.int32)
    found = Encoded(short, (eos,), row.ranks, row.weight, row.votes, row)
    return found, (len(prompt) - len(short), 0)


def _assert_distinct(completions: Sequence[list[int]]) -> None:
    """Raises BadRow if two completions have the same tokens."""
    for k, ids in enumerate(completions):
        if ids in completions[:k]:
            raise BadRow(
                f"completions[{k}]",
                "a completion of its own",
                f"the {len(ids)} tokens of completions[{completions.index(ids)}], after truncation",
                "raise max_length if they differ further on",
            )
