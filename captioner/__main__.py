"""`python -m captioner`, and the command `captioner`: the command line is imported where Ctrl-C is already told."""

from captioner.run import lastresort


def main() -> None:
    """The `captioner` command."""

    def command() -> None:
        from captioner.cli.main import app

        app(prog_name="captioner")

    lastresort.run("captioner", command)


if __name__ == "__main__":
    main()
