"""An absl binary whose flags are the fields of a frozen dataclass."""

import errno
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import tyro
from absl import app, flags, logging
from rich.console import Console

Config = TypeVar("Config")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a system says that has no room left for a file."""


class UsageError(Exception):
    """The user can mend it: shown without a traceback."""


def main(config_class: type[Config], experiment: Callable[[Config], None]) -> None:
    """Parses the command line into a config and runs the experiment under absl.

    Args:
      config_class: a frozen dataclass; its docstring and fields become `--help`.
      experiment: the experiment. A `UsageError`, or a full disk, ends the process with a message
        and status 1.
    """

    def parse(argv: list[str]) -> list[str]:
        parsed.append(tyro.cli(config_class, args=argv[1:], use_underscores=True))
        return flags.FLAGS(argv[:1])  # absl has no flags of its own here

    def run(argv: list[str]) -> None:
        del argv
        logging.set_verbosity(logging.WARNING)  # orbax tells of every file it writes
        try:
            experiment(parsed[0])
        except UsageError as error:
            fail(str(error))
        except OSError as error:
            if error.errno not in FULL:
                raise
            fail(
                f"{error.strerror} ({error.filename or 'a file of the run'}): what was saved "
                "before is whole; free some space and give the same command again"
            )

    def fail(message: str) -> NoReturn:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(f"error: {message}", markup=False)
        sys.exit(1)

    parsed: list[Config] = []
    app.run(run, flags_parser=parse)


def choose(kind: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Refuses names that are not known.

    Args:
      kind: what they name, for the message.
      names: the names asked for.
      known: the names there are.

    Raises:
      UsageError: if a name is unknown; the message lists the known ones.
    """
    for name in names:
        if name not in known:
            raise UsageError(f"unknown {kind} {name!r}; the known ones are: {', '.join(known)}")


def date(name: str, given: str) -> datetime.datetime:
    """The date that a flag gives.

    Args:
      name: of the flag.
      given: its text.

    Returns:
      The date.

    Raises:
      UsageError: naming the flag, if the text is no date.
    """
    try:
        return datetime.datetime.fromisoformat(given)
    except ValueError as error:
        raise UsageError(
            f"--{name} must be a date such as 2026-01-31 or 2026-01-31T23:59:00, found {given!r}"
        ) from error


def at_least(config: Any, **bounds: int) -> None:
    """Refuses fields of a config that are below their bound.

    Args:
      config: a config.
      **bounds: the least value of each field.

    Raises:
      UsageError: naming the flag, the bound and the value found.
    """
    for name, least in bounds.items():
        if getattr(config, name) < least:
            raise UsageError(f"--{name} must be at least {least}, found {getattr(config, name)}")


def positive(config: Any, *names: str) -> None:
    """Refuses fields of a config that are not positive numbers, NaN included.

    Args:
      config: a config.
      *names: the fields; of a tuple there must be some, all of them positive.

    Raises:
      UsageError: naming the flag and the value found.
    """
    for name in names:
        value = getattr(config, name)
        values = value if isinstance(value, tuple) else (value,)
        if not values or not all(one > 0 for one in values):
            raise UsageError(f"--{name} must be positive, found {value}")
