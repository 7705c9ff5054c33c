"""`python -m ppd` is `ppd`."""

from ppd.cli import main

if __name__ == "__main__":
    main()
