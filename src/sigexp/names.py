"""What was chosen for a run, by name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Names:
    """`experiment` is the dataset's name where no experiment was chosen."""

    experiment: str
    dataset: str
    model: str
    search: str
