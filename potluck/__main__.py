"""`python -m potluck` is the command `potluck`, for those who start it from this very installation."""

from potluck.cli.main import main

if __name__ == "__main__":
    main()
