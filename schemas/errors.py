"""The errors that a person can do something about."""


class Explained(Exception):
    """Something outside of the program is not as it must be. The message says what, where, and what to do.

    Every part derives its own from this; the command line shows the message, and no traceback.
    """
