"""Rows whose prompts say who answers, as far as the rows to learn from know it."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from shatter.data.people import best_completion, with_annotator, with_examples, with_group
from shatter.data.report import RowsError
from shatter.data.rows import Row
from shatter.data.texts import text_key

ConditionOn = Literal["none", "group", "annotator", "examples"]


class Shown(NamedTuple):
    """Counts of how rows say who answers.

    Attributes:
      annotators: different persons of the rows.
      groups: different groups of the rows.
      unknown_annotators: persons without an answer among the rows to learn from.
      unknown_groups: groups without an answer among the rows to learn from.
      by_examples: rows shown with earlier answers of the person.
      by_annotator: rows shown with the person's name.
      by_group: rows shown with the group.
      by_nothing: rows shown as everybody's.
      left_out: earlier answers that were left out because the prompt had no room for them.
    """

    annotators: int
    groups: int
    unknown_annotators: int
    unknown_groups: int
    by_examples: int
    by_annotator: int
    by_group: int
    by_nothing: int
    left_out: int


class Conditions(NamedTuple):
    """What is known of people from the rows to learn from.

    Attributes:
      on: what the prompt says.
      num_examples: the largest number of earlier answers in a prompt.
      dropout: the share of an answer's weight that goes to prompts that say less.
      groups: the groups.
      answers: the answers of every person that can be examples, in a random order, each with the
        number of its row.
    """

    on: ConditionOn
    num_examples: int
    dropout: float
    groups: frozenset[str]
    answers: dict[str, list[tuple[int, Row]]]


Fits = Callable[[Row], bool]
"""Whether a row fits into the model as it is, without losing a part of its prompt."""


def learn_conditions(
    rows: Sequence[Row],
    on: ConditionOn,
    rng: np.random.Generator,
    *,
    num_examples: int = 4,
    dropout: float = 0.2,
    min_group_size: int = 5,
) -> Conditions:
    """Collects the groups and the persons' answers of the rows to learn from.

    Args:
      rows: the rows to learn from, and no others.
      on: what prompts say: nothing, the group, the person's name, or earlier answers.
      rng: draws the order of every person's answers.
      num_examples: the largest number of earlier answers in a prompt.
      dropout: the share of an answer's weight that goes to prompts that say less.
      min_group_size: the smallest size of a group that a prompt may name. The size is the number
        of its annotators, or the largest number of votes in a row where that is larger; where there
        are neither, the number of its answers.

    Returns:
      What `condition_training` and `condition_held_out` need.

    Raises:
      RowsError: if a group is too small, or no row has what prompts should say.
    """
    if on == "none":
        return Conditions(on, num_examples, dropout, frozenset(), {})
    field = "group" if on == "group" else "annotator"
    if not any(getattr(row, field) is not None for row in rows):
        raise RowsError(
            f"condition_on={on} reads the field {field}: expected it in some of the rows, found it "
            f"in none of {len(rows)}; add it to the file, or use condition_on=none"
        )
    sizes = group_sizes(rows)
    small = {name: size for name, size in sizes.items() if size < min_group_size}
    if small:
        name, size = min(small.items(), key=lambda pair: pair[1])
        others = f" ({len(small) - 1} more groups are too small)" if len(small) > 1 else ""
        raise RowsError(
            f"group: expected at least {min_group_size} people in every group, found {size:g} in "
            f"{name!r}{others}: what a model says of so few people is no estimate, and may give "
            "them away. Join the group with another, or leave its field group out; or say by "
            "min_group_size (--min_group_size on the command line) that fewer are enough"
        )
    answers: dict[str, list[tuple[int, Row]]] = {}
    for number, row in enumerate(rows):
        if row.annotator is not None:
            of_person = answers.setdefault(row.annotator, [])
            if best_completion(row) is not None:
                of_person.append((number, row))
    mixed = {name: [of[n] for n in rng.permutation(len(of))] for name, of in answers.items()}
    return Conditions(on, num_examples, dropout, frozenset(sizes), mixed)


def group_sizes(rows: Sequence[Row]) -> dict[str, float]:
    """Counts the people of every group, as `learn_conditions` says.

    Args:
      rows: the rows.

    Returns:
      The sizes by the groups' names.
    """
    people: dict[str, set[str]] = {}
    votes: dict[str, float] = {}
    weight: dict[str, float] = {}
    for row in rows:
        if (group := row.group) is None:
            continue
        named = people.setdefault(group, set())
        if row.annotator is not None:
            named.add(row.annotator)
        votes[group] = max(votes.get(group, 0.0), sum(row.votes or ()))
        weight[group] = weight.get(group, 0.0) + row.weight
    sizes = {group: max(float(len(named)), votes[group]) for group, named in people.items()}
    return {group: size or weight[group] for group, size in sizes.items()}


def condition_training(
    conditions: Conditions,
    rows: Sequence[Row],
    rng: np.random.Generator,
    *,
    fits: Fits = lambda row: True,
) -> tuple[list[Row], Shown]:
    """Says in the prompts of the rows to learn from who answers.

    Every answer becomes several rows: one that says what `conditions.on` asks for, and rows that
    say less, down to nothing. So one model learns to answer as a person, as a group and as
    everybody. A prompt of each kind has the same share of every answer's weight: the one that says
    most `1 - dropout`, and the others equal parts of `dropout`. So what prompts of everybody, or of
    a group, learn from are the shares of all its answers, whatever else is known of each.

    The parts of an answer have its weight together if it can be shown in every way. A row that
    cannot, because it names no annotator or no group or has no earlier answers, has only the parts
    that it can say, so its total weight is smaller; with `dropout=0` it is left out.

    Earlier answers are other answers of the same person among these rows, never about the same
    completions of the same prompt. Their number is drawn evenly from 1 to `num_examples`.

    Args:
      conditions: from `learn_conditions` with the same rows.
      rows: the rows.
      rng: draws how many earlier answers a prompt shows.
      fits: whether a row fits into the model; earlier answers are left out until it does.

    Returns:
      The rows, and the counts.

    Raises:
      RowsError: if no row is left.
    """
    shares = _shares(conditions)
    found: list[tuple[str, Row]] = []
    left_out = 0
    places = {
        number: place for of in conditions.answers.values() for place, (number, _) in enumerate(of)
    }
    for number, row in enumerate(rows):
        num_examples = int(rng.integers(1, conditions.num_examples + 1))
        start = places.get(number, -1) + 1
        levels, num_left_out = _levels(conditions, row, start, num_examples, fits)
        left_out += num_left_out
        found += [
            (kind, conditioned._replace(weight=shares[kind] * row.weight))
            for kind, conditioned in levels
            if shares[kind] > 0
        ]
    if not found:
        raise RowsError(
            f"condition_on={conditions.on}: expected rows whose prompts can say it, found none of "
            f"{len(rows)}, and none is to be shown as less: set condition_dropout above 0, or use "
            "another condition_on"
        )
    return [row for _, row in found], _counts(conditions, rows, found, left_out)


def condition_held_out(
    conditions: Conditions, rows: Sequence[Row], *, fits: Fits = lambda row: True
) -> tuple[list[Row], Shown]:
    """Says in the prompts of held-out rows who answers, as far as the rows to learn from know them.

    A person without answers there is shown as its group, and a group without answers as everybody.
    Earlier answers are those of the rows to learn from alone, the first `num_examples` in the
    person's order.

    Args:
      conditions: from `learn_conditions`.
      rows: the rows.
      fits: whether a row fits into the model; earlier answers are left out until it does.

    Returns:
      One row for each, and the counts.
    """
    found: list[tuple[str, Row]] = []
    left_out = 0
    for row in rows:
        levels, num_left_out = _levels(conditions, row, 0, conditions.num_examples, fits)
        left_out += num_left_out
        found.append(levels[0])
    return [row for _, row in found], _counts(conditions, rows, found, left_out)


def _shares(conditions: Conditions) -> dict[str, float]:
    """Returns the share of an answer's weight that each kind of prompt has; the sum is 1."""
    if conditions.on == "none":
        return {"by_nothing": 1.0}
    less = ["by_nothing"]
    if conditions.on != "group" and conditions.groups:
        less.append("by_group")
    shares = dict.fromkeys(less, conditions.dropout / len(less))
    return shares | {f"by_{conditions.on}": 1.0 - conditions.dropout}


def _levels(
    conditions: Conditions, row: Row, start: int, num_examples: int, fits: Fits
) -> tuple[list[tuple[str, Row]], int]:
    """Returns a row as prompts can show it, the one that says most first, and as everybody's last.

    Args:
      conditions: the conditions.
      row: the row.
      start: the place in the order of the person's answers from which examples are taken.
      num_examples: how many examples to show, if there are so many.
      fits: whether a row fits into the model.

    Returns:
      The kinds and rows, and how many examples were left out for want of room.
    """
    levels: list[tuple[str, Row]] = []
    left_out = 0
    made = row._replace(origin=row)
    if conditions.on == "examples":
        examples = _examples(conditions, row, start, num_examples)
        shown = made
        for num in range(len(examples), 0, -1):
            shown = made._replace(prompt=with_examples(row.prompt, examples[:num]))
            if fits(shown):
                levels.append(("by_examples", shown))
                break
            left_out += 1
    if conditions.on == "annotator" and row.annotator in conditions.answers:
        named = with_annotator(row.prompt, str(row.annotator))
        levels.append(("by_annotator", made._replace(prompt=named)))
    if row.group in conditions.groups:
        prompt = with_group(row.prompt, str(row.group))
        levels.append(("by_group", made._replace(prompt=prompt)))
    return [*levels, ("by_nothing", made)], left_out


def _examples(conditions: Conditions, row: Row, start: int, number: int) -> list[Row]:
    """Returns answers of a row's person about something else, from a place in their order on."""
    of = conditions.answers.get(row.annotator or "", [])
    about, is_text = _about(row), isinstance(row.prompt, str)
    found: list[Row] = []
    for step in range(len(of)):
        _, other = of[(start + step) % len(of)]
        if isinstance(other.prompt, str) == is_text and _about(other) != about:
            found.append(other)
        if len(found) == number:
            break
    return found


def _about(row: Row) -> tuple[str, frozenset[str]]:
    """Returns what a row compares, whatever the order of its completions."""
    return text_key(row.prompt), frozenset(map(text_key, row.completions))


def _counts(
    conditions: Conditions, rows: Sequence[Row], found: Sequence[tuple[str, Row]], left_out: int
) -> Shown:
    annotators = {row.annotator for row in rows} - {None}
    groups = {row.group for row in rows} - {None}
    kinds = [kind for kind, _ in found]
    return Shown(
        annotators=len(annotators),
        groups=len(groups),
        unknown_annotators=len(annotators - conditions.answers.keys()),
        unknown_groups=len(groups - conditions.groups),
        **{kind: kinds.count(kind) for kind in Shown._fields if kind.startswith("by_")},
        left_out=left_out,
    )
