"""`python -m experiments.people.adapters`: an adapter for each person, around one population's."""

from experiments.people.adapters.config import Config
from experiments.people.adapters.run import experiment
from shatter.cli.common import binary

if __name__ == "__main__":
    binary.main(Config, experiment)
