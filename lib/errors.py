"""The one exception that means "the user can mend this", and how a command line reports it."""

import sys


class InputError(ValueError):
    """Bad input: its message names the file, what was found, what was expected and the remedy, on one line."""


def command_line(main):
    """Run `main()` as a program: exit status 0, or 2 with one line on standard error for bad input."""
    try:
        main()
    except InputError as error:
        sys.exit(_report(str(error)))
    except KeyboardInterrupt:
        sys.exit(130)


def first_sentence(error):
    """The beginning of what an exception says: libraries go on to advise what a user of a program cannot do."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0][:160].rstrip(".:")


def _report(message):
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2
