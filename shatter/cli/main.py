"""The command `shatter`: finds the subcommand, imports it and hands it the rest of the line."""

import importlib
import sys
from typing import NamedTuple


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
    "generate": Command("shatter.cli.generate", "Sample responses to the prompts of a file."),
    "convert": Command("shatter.cli.convert", "Merge adapters; change the type of the weights."),
}


def main() -> None:
    """Runs the subcommand that the command line names.

    It is imported only now, because `shatter --help` should answer at once, and because its
    packages come with an extra that need not be installed.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(_usage())
        return
    if name not in COMMANDS:
        print(f"error: unknown command {name!r}\n{_usage()}", file=sys.stderr)
        sys.exit(1)
    try:
        from shatter.cli.common import binary

        module = importlib.import_module(COMMANDS[name].module)
    except ModuleNotFoundError as error:
        print(
            f"error: `shatter {name}` needs packages of an extra ({error}): "
            "pip install 'shatter-lm[cli]'",
            file=sys.stderr,
        )
        sys.exit(1)
    binary.main(module.FLAGS, module.experiment, argv=[f"shatter {name}", *sys.argv[2:]])


def _usage() -> str:
    commands = [f"  {name:10} {command.summary}" for name, command in COMMANDS.items()]
    lines = ["usage: shatter COMMAND [FLAGS]", *commands]
    return "\n".join([*lines, "`shatter COMMAND --help` explains the flags of a command."])


if __name__ == "__main__":
    main()
