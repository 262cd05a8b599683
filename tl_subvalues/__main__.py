"""`python -m tl_subvalues` is the command `tl-subvalues`."""

from tl_subvalues.command.cli import main

if __name__ == "__main__":
    main()
