"""`python -m vitc` is the `vitc` command."""

from vitc.cli import app

if __name__ == "__main__":
    app(prog_name="vitc")
