"""The two ways a command ends early: the user's mistake, and a run that failed."""


class UserError(Exception):
    """A mistake that the user can correct; the command ends with exit code 2.

    The message is one sentence that names the file, key or value and says what to do.
    """


class RunFailed(Exception):
    """A run that cannot go on (diverged, disk full, …); the command ends with exit code 1.

    The message is one sentence that says why, and what is saved.
    """
