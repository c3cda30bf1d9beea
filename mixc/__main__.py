"""`python -m mixc` and the `mixc` command."""

from mixc.cli import main

if __name__ == "__main__":
    main()
