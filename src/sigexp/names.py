"""What was chosen for a run, by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Names:
    """`experiment` is the dataset's name where no experiment was chosen.

    conf: digests of the conf files that the config was composed from, None for one that was not there.
    """

    experiment: str
    dataset: str
    model: str
    search: str
    conf: Mapping[str, str | None] = field(default_factory=dict, compare=False, repr=False)

    def chosen(self) -> dict[str, str]:
        """What was chosen, without the digests."""
        return {"experiment": self.experiment, "dataset": self.dataset, "model": self.model, "search": self.search}
