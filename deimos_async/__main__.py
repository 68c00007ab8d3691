"""`python -m deimos_async`."""

from deimos_async.cli import main

if __name__ == "__main__":
    main()
