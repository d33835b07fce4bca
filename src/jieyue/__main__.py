"""``python -m jieyue`` (and ``torchrun … -m jieyue``) is the command line."""

from jieyue.cli import main

if __name__ == "__main__":
    main()
