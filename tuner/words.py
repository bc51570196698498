"""Numbers with their nouns."""


def count(number: float, noun: str) -> str:
    """A number with its noun: 1 step, 1,200 steps, 2.5 epochs."""
    number = int(number) if number == int(number) else number
    return f"{number:,} {noun}{'s' * (number != 1)}"
