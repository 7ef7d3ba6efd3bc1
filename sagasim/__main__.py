"""python -m sagasim: the command line."""

from sagasim.cli import main

if __name__ == "__main__":
    main()
