"""The errors that a person can do something about, and what may be said of the others."""

import re

_QUOTED = re.compile(r"""(["'])(?:(?!\1)[^\\]|\\.)*(?:\1|$)""", re.DOTALL)


class Explained(Exception):
    """Something outside of the program is not as it must be. The message says what, where, and what to do.

    Every part derives its own from this; the command line shows the message, and no traceback.
    """


def loggable(error: BaseException) -> str:
    """An error for a log: its kind, and what it says without what it quotes.

    ClickHouse quotes queries and rows, Python keys and values: users, hosts and seats may be among them. What is Explained
    quotes nothing of that kind.
    """
    if isinstance(error, Explained):
        return str(error)
    return f"{type(error).__name__}: {_QUOTED.sub('...', str(error))}"
