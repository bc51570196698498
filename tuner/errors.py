"""What a person is told when something cannot work. Anything that is not a TunerError is a bug."""


class TunerError(Exception):
    """One or more problems, each a sentence a person is shown as it is: what was given, why not, what to do."""

    def __init__(self, *problems: str):
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)
