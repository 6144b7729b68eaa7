"""The two ways a command ends early: the user's mistake, and a run that failed."""


class UserError(Exception):
    """A mistake the user can correct: one sentence naming the file, key or value and what to do. Exit code 2."""


class RunFailed(Exception):
    """A run that cannot go on (diverged, disk full, …): one sentence saying why and what is saved. Exit code 1."""
