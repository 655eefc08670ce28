"""``python -m histomae`` is the command line."""

from histomae.cli import main

if __name__ == "__main__":
    main()
