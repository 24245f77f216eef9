"""TensorBoard events of a run: one writer, one event a round; steps are member-samples seen.

`hparams` summaries go to the run's own file, because `SummaryWriter.add_hparams` would make a second run of it.
"""

import math
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torch.utils.tensorboard.summary import hparams as hparams_summaries
from torch.utils.tensorboard.summary import text as text_summary


class Events:
    def __init__(self, folder: Path) -> None:
        self.writer = EventFileWriter(str(folder))

    def _write(self, summary: Summary, step: int) -> None:
        self.writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """All scalars of one moment as one event; values that are not finite are left out."""
        finite = {tag: value for tag, value in values.items() if math.isfinite(value)}
        self._write(Summary(value=[Summary.Value(tag=t, simple_value=v) for t, v in finite.items()]), step)

    def picture(self, tag: str, png: bytes, step: int) -> None:
        width, height = struct.unpack(">II", png[16:24])  # of the header, which comes first in every PNG
        image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
        self._write(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def text(self, tag: str, text: str) -> None:
        self._write(text_summary(tag, text), 0)

    def hparams(self, hparams: Mapping[str, str | float | int | bool], metrics: Mapping[str, float], step: int) -> None:
        """The line of this run in the hparams tab: what was chosen, and its test metrics."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        for summary in hparams_summaries(dict(hparams), finite):
            self._write(summary, 0)
        self.scalars(finite, step)

    def close(self) -> None:
        self.writer.close()
