"""Reads one JSON object, in any of the layouts, as completions and answers about them."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from shatter.data.report import BadRow
from shatter.data.texts import Text, checked_text, shown, text_key

__all__ = ["LAYOUTS", "Answers", "Text", "answers_of", "parsed", "shown", "text_key"]

Ranks = tuple[int, ...]
DEMONSTRATED: Ranks = (0,)
"""The ranks of a single completion that somebody wrote as an example to imitate."""
LABELLED_TRUE: Ranks = (1,)
"""The ranks of a single completion that somebody labelled true."""
LABELLED_FALSE: Ranks = (2,)
"""The ranks of a single completion that somebody labelled false."""

LAYOUTS = (
    "a row is prompt, chosen, rejected (prompt may be left out), or prompt, completion (and "
    "label), or prompt, completions and one of ranks, ratings, votes"
)
MAX_COUNT = 1e15
"""The largest weight or number of votes; the smallest is one over it."""


class Answers(NamedTuple):
    """The content of one JSON object, which may make several rows.

    Attributes:
      prompt: the text or conversation.
      completions: K completions.
      answers: the ranks `[K]` and the weight of every row.
      votes: the counts, `[K]` or `[K + 1]`, if there are any.
      about: annotator and group.
      is_implicit: whether the prompt was cut out of the completions.
      last_turn: whether the loss counts only the last message of each completion, a conversation of
        several messages.
    """

    prompt: Text
    completions: tuple[Text, ...]
    answers: list[tuple[Ranks, float]]
    votes: tuple[float, ...] | None
    about: tuple[str | None, str | None]
    is_implicit: bool
    last_turn: bool


def parsed(raw: bytes | dict[str, Any]) -> dict[str, Any]:
    """Parses a line, and returns its JSON object without the fields that are null.

    Args:
      raw: the line, or the object if it comes from a table.

    Returns:
      The object.

    Raises:
      BadRow: if the line is not one JSON object, or the object has a field twice.
    """
    record: Any = raw
    if isinstance(raw, bytes):
        try:
            record = json.loads(raw.decode(), object_pairs_hook=_fields_once)
        except UnicodeDecodeError as error:
            found = f"byte {raw[error.start]:#04x} at {error.start}"
            raise BadRow("line", "UTF-8", found, "save the file as UTF-8") from error
        except (ValueError, RecursionError) as error:
            found = f"{shown(raw.decode())} ({error})"
            raise BadRow("line", "a whole JSON object", found, "one object a line") from error
    if not isinstance(record, dict):
        raise BadRow("line", "a JSON object", shown(record), "one object a line, no list around")
    return {name: value for name, value in record.items() if value is not None}


def _fields_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for n, name in enumerate(names) if name in names[:n])
        raise BadRow("line", "an object with each field once", f"{shown(twice)} twice")
    return fields


def answers_of(record: dict[str, Any]) -> Answers:
    """Reads the prompt, the completions and the answers of one object.

    Args:
      record: the object, without nulls.

    Returns:
      Its content.

    Raises:
      BadRow: if it has none of the layouts or a field does not hold what belongs there.
    """
    kind, fields = _fields(record)
    completions = [checked_text(value, field) for field, value in fields.items()]
    prompt = checked_text(record["prompt"], "prompt") if "prompt" in record else None
    _assert_distinct(completions, list(fields))
    is_told_twice = isinstance(prompt, str) and all(isinstance(c, tuple) for c in completions)
    is_implicit = kind == "chosen" and (prompt is None or is_told_twice)
    if is_implicit:
        start, completions = _split(*completions)
        if is_told_twice and prompt not in [m["content"] for m in start if isinstance(m, dict)]:
            expected = "a conversation, or the text of a message that both completions start with"
            raise BadRow("prompt", expected, shown(prompt))
        prompt = start
    assert prompt is not None
    for field, completion in zip(fields, completions, strict=True):
        _assert_completion(completion, field, prompt)
    if isinstance(prompt, tuple) and prompt and prompt[-1]["role"] == "assistant":
        expected = "a conversation whose last message is not the assistant's"
        raise BadRow("prompt", expected, "one that ends with the assistant")
    answers, votes = _answers(record, kind, len(completions))
    about = _name(record, "annotator"), _name(record, "group")
    last_turn = record.get("last_turn", is_implicit)
    if not isinstance(last_turn, bool):
        raise BadRow("last_turn", "true or false", shown(last_turn))
    last_turn &= any(isinstance(text, tuple) and len(text) > 1 for text in completions)
    return Answers(prompt, tuple(completions), answers, votes, about, is_implicit, last_turn)


def _fields(record: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the field that tells the layout, and the unchecked completions by their place."""
    names = _names(record)
    kinds: list[str] = [name for name in ("chosen", "completion", "completions") if name in record]
    kinds += ["rejected"] if "rejected" in record and "chosen" not in record else []
    if len(kinds) != 1:
        raise BadRow("row", "one layout", names, LAYOUTS)
    kind = kinds[0]
    needed = {"chosen": "rejected", "rejected": "chosen"}.get(kind, "prompt")
    if needed not in record:
        raise BadRow(needed, f"this field beside {kind}", names, LAYOUTS)
    if kind != "completions":
        fields = ["chosen", "rejected"] if kind == "chosen" else [kind]
        return kind, {field: record[field] for field in fields}
    completions = record[kind]
    if not isinstance(completions, list | tuple) or not completions:
        raise BadRow(kind, "a list of texts or conversations", shown(completions))
    return kind, {f"{kind}[{k}]": completion for k, completion in enumerate(completions)}


def _names(record: dict[str, Any]) -> str:
    return f"the fields {', '.join(sorted(record)) or '(none)'}"


def _answers(
    record: dict[str, Any], kind: str, num: int
) -> tuple[list[tuple[Ranks, float]], tuple[float, ...] | None]:
    """Returns the ranks and the weight of every row to be made, and the counts of votes."""
    weight = _count(record.get("weight", 1.0), "weight")
    if kind == "chosen":
        return [((1, 2), weight)], None
    if kind == "completion":
        label = record.get("label")
        if label is not None and not isinstance(label, bool):
            raise BadRow("label", "true or false (none on a demonstration)", shown(label))
        labelled = LABELLED_TRUE if label else LABELLED_FALSE
        return [(DEMONSTRATED if label is None else labelled, weight)], None
    fields = [name for name in ("ranks", "ratings", "votes") if name in record]
    if fields not in (["ranks"], ["ratings"], ["votes"], ["ranks", "votes"]):
        raise BadRow("ranks", "one of ranks, ratings, votes beside completions", _names(record))
    votes = _votes(record["votes"], num) if "votes" in record else None
    if fields[0] == "ranks":
        return [(_ranks(record["ranks"], num), weight)], votes
    if votes is None:
        return [(_ranks_of_ratings(record["ratings"], num), weight)], None
    choices = [tuple(1 if k == chosen else 2 for k in range(num)) for chosen in range(num)]
    choices.append((1,) * num)  # a vote for none leaves the order unresolved
    counted = zip(choices, votes, strict=False)
    answers = [(ranks, weight * count) for ranks, count in counted if count > 0]
    for _, product in answers:
        _count(product, "weight")
    return answers, votes


def _ranks(value: Any, num: int) -> Ranks:
    _assert_length(value, "ranks", [num])
    for k, rank in enumerate(value):
        if not isinstance(rank, int) or isinstance(rank, bool) or abs(rank) >= 2**31:
            raise BadRow(f"ranks[{k}]", "a whole number, 1 = best, of 32 bits", shown(rank))
    if max(value) < 0:
        raise BadRow("ranks", "a rank >= 0: a completion that was shown", shown(value))
    return tuple(value)


def _ranks_of_ratings(value: Any, num: int) -> Ranks:
    _assert_length(value, "ratings", [num])
    ratings = [None if r is None else _number(r, f"ratings[{k}]") for k, r in enumerate(value)]
    levels = sorted({rating for rating in ratings if rating is not None}, reverse=True)
    if not levels:
        raise BadRow("ratings", "at least one number", shown(value))
    return tuple(-1 if rating is None else 1 + levels.index(rating) for rating in ratings)


def _votes(value: Any, num: int) -> tuple[float, ...]:
    if num < 2:
        raise BadRow("completions", "at least two, to vote on", str(num))
    _assert_length(value, "votes", [num, num + 1])
    votes = tuple(_number(count, f"votes[{k}]") for k, count in enumerate(value))
    if min(votes) < 0 or max(votes) == 0:
        raise BadRow("votes", "counts >= 0, one of them above 0", shown(value))
    return tuple(_count(n, f"votes[{k}]") if n else 0.0 for k, n in enumerate(votes))


def _number(value: Any, field: str) -> int | float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) < 1e300:
        raise BadRow(field, "a number", shown(value))
    return cast(int | float, value)


def _count(value: Any, field: str) -> float:
    """Checks a weight; float32 must hold it, its square, and the sum over a file."""
    number = _number(value, field)
    if number <= 0:
        raise BadRow(field, "a number above 0", str(float(number)))
    if not 1 / MAX_COUNT <= number <= MAX_COUNT:
        found = f"{number:.3g}, beyond what float32 can add up"
        raise BadRow(field, f"a number from {1 / MAX_COUNT:g} to {MAX_COUNT:g}", found)
    return float(number)


def _assert_length(value: Any, field: str, lengths: list[int]) -> None:
    if not isinstance(value, list | tuple) or len(value) not in lengths:
        more = ", or one more: how many chose none" if len(lengths) > 1 else ""
        expected = f"a list of {lengths[0]} numbers, one a completion{more}"
        raise BadRow(field, expected, shown(value))


def _name(record: dict[str, Any], field: str) -> str | None:
    """Returns a name; a whole number, which some tables write as 3.0, becomes its digits."""
    name = record.get(field)
    if isinstance(name, float) and name.is_integer() and abs(name) < 2**53:
        name = int(name)
    if isinstance(name, bool) or not isinstance(name, str | int | None):
        raise BadRow(field, "a name or a whole number", shown(name))
    return None if name is None else str(checked_text(str(name), field))


def _split(chosen: Text, rejected: Text) -> tuple[Text, list[Text]]:
    """Splits two texts or conversations into their longest common start and what follows it.

    At least a word or a message of both is left, and no word is cut.
    """
    shortest = min(len(chosen), len(rejected))
    pairs = enumerate(zip(chosen, rejected, strict=False))
    end = next((n for n, (a, b) in pairs if a != b), shortest)
    if isinstance(chosen, str) and isinstance(rejected, str):
        while end and not (_may_cut(chosen, end) and _may_cut(rejected, end)):
            end -= 1
    else:
        end = min(end, max(shortest - 1, 0))
    return chosen[:end], [chosen[end:], rejected[end:]]


def _may_cut(text: str, end: int) -> bool:
    """Returns whether a text may be cut here, before white space that something follows."""
    is_boundary = text[end : end + 1].isspace() and not text[end - 1].isspace()
    return is_boundary and bool(text[end:].strip())


def _assert_completion(completion: Text, field: str, prompt: Text) -> None:
    """Raises BadRow for an empty completion, or one that cannot follow the prompt."""
    if isinstance(completion, str) != isinstance(prompt, str):
        kinds = ("a text", "a conversation")[:: 1 if isinstance(prompt, str) else -1]
        mend = 'a text becomes a conversation as [{"role": "assistant", "content": text}]'
        raise BadRow(field, f"{kinds[0]}, as the prompt is", kinds[1], mend)
    last: Any = completion
    if isinstance(completion, tuple):
        roles = [message["role"] for message in completion]
        if not roles or roles[-1] != "assistant":
            expected = "a conversation whose last message is the assistant's"
            raise BadRow(field, expected, f"the roles {roles}")
        if roles[0] not in ("assistant", "tool"):
            mend = "do not repeat the prompt's messages in the completion, or leave prompt out"
            raise BadRow(f"{field}[0].role", "assistant or tool", roles[0], mend)
        content = completion[-1]["content"]
        last = content or completion[-1].get("tool_calls") or content
    if not last or not str(last).strip():
        raise BadRow(field, "a completion with something in it", shown(last))


def _assert_distinct(completions: Sequence[Text], fields: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for field, completion in zip(fields, completions, strict=True):
        first = seen.setdefault(text_key(completion), field)
        if first != field:
            found = f"that of {first} again: {shown(completion)}"
            raise BadRow(field, "a completion of its own", found)
