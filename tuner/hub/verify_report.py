"""What `tuner verify` found."""

from dataclasses import dataclass, field


@dataclass
class Report:
    """What was found, in sentences."""

    differs: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    is_open: bool = False  # whether answers that were asked for could not be compared

    @property
    def status(self) -> int:
        """0 if all is the same, 1 if something differs, 2 if too little could be checked to tell."""
        return 1 if self.differs else 2 if self.is_open or not self.same else 0

    def leave_open(self, sentence: str) -> None:
        """Note that answers could not be compared, and why."""
        self.unchecked.append(sentence)
        self.is_open = True

    def compare(self, what: str, difference: str | None) -> None:
        """Note that `what` is the same, or how it differs."""
        self.differs.append(difference) if difference else self.same.append(what)
