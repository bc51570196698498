"""The exception for problems that a person can fix. Any other exception that reaches a person is a bug."""


class TunerError(Exception):
    """One or more problems, each shown as it is: what was given, why it can't work, what to do."""

    def __init__(self, *problems: str):
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)
