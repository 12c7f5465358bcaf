"""Binaries whose flags are the fields of a frozen dataclass, and checks of the flags' values."""

import dataclasses
import datetime
import errno
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

import tyro
from absl import app, flags, logging
from rich.console import Console

from shatter.cli.common.memory import keep_freed_memory

Config = TypeVar("Config")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The error numbers of a system that has no room left for a file."""

NAME_BYTES, PATH_BYTES = 255, 4095
"""The longest file name and the longest path that file systems accept."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class UsageError(Exception):
    """An error that the user can fix; it is shown without a traceback."""


def main(
    config_class: type[Config],
    experiment: Callable[[Config], None],
    *,
    argv: list[str] | None = None,
) -> None:
    """Parses the command line into a config and calls a function with it, under absl.

    Args:
      config_class: a frozen dataclass; its docstring and fields become `--help`. It may have a
        class variable `REMOVED`: advice by the name of a flag that older versions had.
      experiment: the function. If it ends with a `UsageError`, a full disk or another error of the
        operating system, the process ends with a message and status 1.
      argv: the program's name, as `--help` shows it, and its arguments; None = the process's own.
    """

    def parse(argv: list[str]) -> list[str]:
        if advice := _removed_flag(config_class, argv[1:]):
            fail(advice)
        parsed.append(tyro.cli(config_class, prog=program, args=argv[1:], use_underscores=True))
        return flags.FLAGS(argv[:1])  # absl has no flags of its own here

    def run(argv: list[str]) -> None:
        del argv
        logging.set_verbosity(logging.WARNING)
        # Whatever orbax raises it also logs, with the traceback of one of its threads.
        logging.get_absl_handler().addFilter(lambda record: "orbax" not in record.pathname)
        try:
            check_texts(parsed[0])
            experiment(parsed[0])
        except BaseException as error:
            message = advice_about(error)
            if message is None:
                raise
            fail(message)

    def fail(message: str) -> NoReturn:
        show_error(message)
        sys.exit(1)

    keep_freed_memory()
    parsed: list[Config] = []
    program = None if argv is None else argv[0]
    app.run(run, argv=argv, flags_parser=parse)


def advice_about(error: BaseException) -> str | None:
    """Returns what to tell the user about an error; None if it is a fault of the program."""
    if isinstance(error, UsageError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted: what was saved before is whole; the same command goes on"
    if not isinstance(error, Exception):
        return None
    if full := full_disk(error):
        return (
            f"{full}: what was saved before is whole; free some space and give the same command "
            "again"
        )
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        first_line = str(error).partition("\n")[0]
        return f"out of memory ({first_line}): lower the sizes of batches, or lengths"
    return None


def show_error(message: str) -> None:
    """Writes an error to the standard error, with control characters made visible."""
    printable = _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), message)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"error: {printable}", markup=False)


def _removed_flag(config_class: type, arguments: Sequence[str]) -> str | None:
    """Returns advice about the first flag that older versions had; None if there is none."""
    removed: Mapping[str, str] = getattr(config_class, "REMOVED", {})
    for argument in arguments:
        name = argument.partition("=")[0].removeprefix("--").replace("-", "_")
        if argument.startswith("--") and name in removed:
            return f"there is no flag --{name} any more: {removed[name]}"
    return None


def full_disk(error: BaseException) -> str | None:
    """Returns the system's message if an error arose because a disk is full.

    Libraries that write files in their own way wrap that message into errors of their own, so it
    has to be searched for.

    Args:
      error: any error.

    Returns:
      The message and the file, as far as they are known; None for other errors.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in FULL:
            return f"{cause.strerror} ({cause.filename or 'a file of the run'})"
        for words in map(os.strerror, FULL):
            if words in str(cause):
                return f"{words} (a file of the run)"
        cause = cause.__cause__ or cause.__context__
    return None


def choose(kind: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Raises an error if a name is not known.

    Args:
      kind: the kind of thing that the names stand for, for the message.
      names: the names to check.
      known: all names that exist.

    Raises:
      UsageError: if a name is unknown; the message lists the known ones.
    """
    for name in names:
        if name not in known:
            raise UsageError(f"unknown {kind} {name!r}; the known ones are: {', '.join(known)}")


def require(config: Any, names: Sequence[str], example: str) -> None:
    """Raises an error if a text that has to be given is empty.

    Args:
      config: a config.
      names: the fields that have to be given.
      example: a complete command, for the message.

    Raises:
      UsageError: naming the first flag that is missing.
    """
    for name in names:
        if not getattr(config, name):
            raise UsageError(f"--{name} is required; for example: {example}")


class Range(NamedTuple):
    """The numbers that a flag may have; NaN is never among them.

    Attributes:
      low: the smallest.
      high: the largest.
      above: whether `low` itself, which is then 0, is excluded.
      below: whether `high` itself is excluded.
      other: values outside the range that have a meaning of their own, such as -1 or None.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False
    other: tuple[Any, ...] = ()


LARGEST_WHOLE = 2**31 - 1  # because seeds and sizes become int32
SMALLEST, LARGEST = 1e-30, 1e9  # so that squares and products stay within float32


def whole(least: int, most: int = LARGEST_WHOLE, *, other: tuple[Any, ...] = ()) -> Range:
    """Returns the range of whole numbers from `least` to `most`; an int32 holds them."""
    return Range(least, most, other=other)


def real(low: float, high: float = LARGEST, *, below: bool = False) -> Range:
    """Returns the range of numbers from `low` to `high`; they are finite in float32."""
    return Range(low, high, below=below)


POSITIVE = Range(0, LARGEST, above=True)
"""Numbers above 0 that are neither 0 nor infinite in float32."""


def check_ranges(config: Any, ranges: Mapping[str, Range]) -> None:
    """Raises an error if a field of a config is out of its range.

    Args:
      config: a config.
      ranges: ranges by field; those of fields that the config lacks are ignored. In a tuple all
        numbers must be in the range, and a tuple of positive numbers must not be empty.

    Raises:
      UsageError: naming the flag, what was expected and what was found.
    """
    for name, bounds in ranges.items():
        if hasattr(config, name):
            value = getattr(config, name)
            numbers = value if isinstance(value, tuple) else (value,)
            expected = "positive" if bounds.above and not numbers else None
            for number in numbers:
                expected = expected or _expected(number, bounds)
            if expected is not None:
                raise UsageError(f"--{name} must be {expected}, found {value}")


def _expected(value: Any, bounds: Range) -> str | None:
    """Returns what was expected instead of a number; None if the number is in the range."""
    low, high, above, below, other = bounds
    others = "".join(f"{special} or " for special in other if special is not None)
    if value in other:
        return None
    if not isinstance(value, int | float):
        return f"{others}a number"
    too_low = not (low < value if above else low <= value)
    too_high = not (value < high if below else value <= high)
    if (too_low or too_high) and high <= 1:
        return f"in [{low}, {high}{')' if below else ']'}"
    if too_low:
        return f"{others}positive" if above else f"{others}at least {low}"
    if above and value < SMALLEST:
        return f"at least {SMALLEST:g}"
    return f"{others}at most {high}" if too_high else None


def check_texts(config: Any) -> None:
    """Raises an error if a text could not name a file, or does not fit into UTF-8.

    Args:
      config: a config; fields that are not texts are ignored.

    Raises:
      UsageError: naming the flag, what was expected and what was found.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for text in value if isinstance(value, tuple) else (value,):
            if not isinstance(text, str):
                continue
            content = text.encode(errors="surrogatepass")
            longest = max(map(len, content.split(b"/")))
            if longest > NAME_BYTES or len(content) > PATH_BYTES:
                expected, actual = f"names of at most {NAME_BYTES} bytes", f"{longest} bytes"
            elif bad := _UNPRINTABLE.search(text):
                expected, actual = "text without control characters, in UTF-8", repr(bad[0])
            else:
                continue
            raise UsageError(f"--{field.name} must be {expected}, found {actual}")


def date(name: str, text: Any) -> datetime.datetime:
    """Parses the date in a flag.

    Args:
      name: the flag's name.
      text: its value.

    Returns:
      The date.

    Raises:
      UsageError: naming the flag, if the value is not a date.
    """
    try:
        return datetime.datetime.fromisoformat(text)
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"--{name} must be a date such as 2026-01-31 or 2026-01-31T23:59:00, found {text!r}"
        ) from error


def at_least(config: Any, **bounds: int) -> None:
    """Raises an error if a whole number is below its bound, or too large for an int32.

    Args:
      config: a config.
      **bounds: the smallest value of each field.

    Raises:
      UsageError: naming the flag, the bound and the value found.
    """
    check_ranges(config, {name: whole(least) for name, least in bounds.items()})


def positive(config: Any, *names: str) -> None:
    """Raises an error if a field of a config is not a positive, finite number.

    Args:
      config: a config.
      *names: the fields; a tuple must have at least one number, and all must be positive.

    Raises:
      UsageError: naming the flag and the value found.
    """
    check_ranges(config, dict.fromkeys(names, POSITIVE))
