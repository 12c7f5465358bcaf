"""The command `shatter`: finds the subcommand, imports it and hands it the rest of the line."""

import importlib
import sys
from typing import NamedTuple

from shatter.cli.common import binary


class Command(NamedTuple):
    """A subcommand.

    Attributes:
      module: the module that has `FLAGS`, a dataclass or a union of them, and `experiment`.
      summary: one line for `shatter --help`.
    """

    module: str
    summary: str


COMMANDS = {
    "finetune": Command("shatter.cli.finetune.run", "Fine-tune a model on preferences."),
    "label": Command("shatter.cli.label.run", "Choose what to ask people; learn from the answers."),
}


def main() -> None:
    """Runs the subcommand that the command line names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in COMMANDS:
        known = "\n".join(f"  {name:10} {command.summary}" for name, command in COMMANDS.items())
        usage = (
            f"usage: shatter COMMAND [FLAGS]; `shatter COMMAND --help` explains the flags\n{known}"
        )
        if name in ("-h", "--help", "help"):
            print(usage)
            return
        print(f"error: unknown command {name!r}\n{usage}", file=sys.stderr)
        sys.exit(1)
    module = importlib.import_module(COMMANDS[name].module)
    binary.main(module.FLAGS, module.experiment, argv=[f"shatter {name}", *sys.argv[2:]])


if __name__ == "__main__":
    main()
