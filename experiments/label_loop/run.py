"""`python -m experiments.label_loop.run`: see README.md beside this file."""

import dataclasses

from experiments.common.sources import model_folder
from experiments.label_loop import loop
from experiments.label_loop.config import Config, check
from shatter.cli.common import binary
from shatter.cli.common.locks import alone
from shatter.cli.common.progress import open_console, progress_bar
from shatter.cli.label import tables
from shatter.cli.label.display import say


def experiment(config: Config) -> None:
    """Runs every seed's rounds and prints the measures."""
    check(config)
    folder = model_folder(config.model_name_or_path, config.data_dir)
    config = dataclasses.replace(config, model_name_or_path=folder)
    console = open_console()
    with alone(config.project, "--project"):
        with progress_bar(console, config.num_rounds * config.num_seeds) as advance:
            benches = loop.run(config, advance)
        for bench in benches:
            console.print(tables.metrics(bench.folder, bench.ensemble.history))
        say(console, f"Results in {config.project}")


if __name__ == "__main__":
    binary.main(Config, experiment)
