"""`python -m service` is the command `fantail`."""

import sys


def main() -> None:
    """Run the command, or say what it needs where only the client is installed."""
    try:
        from service.cli import main as command
    except ModuleNotFoundError as error:
        sys.exit(
            f"The command needs {error.name}, which is not installed: the base install is the client alone. "
            "Install fantail[cpu] or fantail[gpu]."
        )
    command()


if __name__ == "__main__":
    main()
