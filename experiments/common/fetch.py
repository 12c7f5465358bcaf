"""Fetches original files of data and models into the user's cache, and prints where they are.

python -m experiments.common.fetch smollm2-135m
"""

import dataclasses

import tyro

from experiments.common.source_files import SOURCES
from experiments.common.sources import SourceError, locate
from shatter.cli.common import binary
from shatter.cli.common.binary import UsageError
from shatter.cli.common.progress import open_console


@dataclasses.dataclass(frozen=True)
class Config:
    """Fetch original files of data and models, where they are not on this machine yet."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names of files: smollm2-135m is the model SmolLM2-135M-Instruct. Without names all files that
    have a public address are fetched."""

    data_dir: str | None = None
    """Folder that is searched first; SHATTER_DATA_DIR if not given."""


def experiment(config: Config) -> None:
    """Fetches the files and prints their paths."""
    public = (name for name, source in SOURCES.items() if source.url or source.package)
    for name in config.names or public:
        try:
            open_console().print(f"{name}: {locate(name, config.data_dir)}")
        except SourceError as error:
            raise UsageError(str(error)) from error


if __name__ == "__main__":
    binary.main(Config, experiment)
