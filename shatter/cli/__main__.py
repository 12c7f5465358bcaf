"""`python -m shatter.cli`, the same as the command `shatter`."""

from shatter.cli.main import main

if __name__ == "__main__":
    main()
