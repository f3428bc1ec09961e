"""Runs every study whose results are not there, in the order in which they need one another."""

from experiments.common import main, studies

if __name__ == "__main__":
    main(*studies())
