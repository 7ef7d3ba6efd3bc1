"""python -m sagasim: the command line."""

from sagasim.cli import process

if __name__ == "__main__":
    process()
