"""TensorBoard events of a run: one file, one event a moment; steps are member-samples seen.

What the plugins want is written as they define it: `torch.utils.tensorboard` would make a second run of the
hyperparameters, and takes seconds to import and to trace a graph.
"""

import math
import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tensorboard.compat.proto.attr_value_pb2 import AttrValue
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.node_def_pb2 import NodeDef
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.versions_pb2 import VersionDef
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

from sigexp.track.tfrecord import RecordFile

HParam = str | float | int
Charts = Mapping[str, Sequence[str] | Sequence[tuple[str, str, str]]]


@dataclass(frozen=True)
class Node:
    """A box of the model's graph. Slashes in its name nest it; inputs are names of other nodes."""

    name: str
    kind: str
    inputs: Sequence[str] = ()
    shape: Sequence[int] | None = None  # of its output
    about: Mapping[str, str] = field(default_factory=dict)


class Events:
    """The event file of one run. Raises OSError where the disk does."""

    def __init__(self, folder: Path) -> None:
        # TensorBoard reads the files of a folder by their names: a run that goes on has a later one.
        before = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")]
        after = max((int(when) + 1 for when in before if when.isascii() and when.isdigit()), default=0)
        name = f"events.out.tfevents.{max(round(time.time()), after):010}.{socket.gethostname()}.{os.getpid()}.0"
        self.file = RecordFile(folder / name)
        self._event(Event(file_version="brain.Event:2"))

    def _event(self, event: Event) -> None:
        event.wall_time = time.time()
        self.file.write(event.SerializeToString())

    def _write(self, summary: Summary, step: int) -> None:
        self._event(Event(step=step, summary=summary))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """All scalars of one moment as one event; values that are not finite are left out."""
        finite = {tag: value for tag, value in values.items() if math.isfinite(value)}
        if finite:
            self._write(Summary(value=[Summary.Value(tag=t, simple_value=v) for t, v in finite.items()]), step)

    def picture(self, tag: str, png: bytes, step: int) -> None:
        width, height = struct.unpack(">II", png[16:24])  # of the header, which comes first in every PNG
        image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
        self._write(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        tensor = TensorProto(
            dtype="DT_STRING",
            string_val=[markdown.encode()],
            tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
        )
        self._write(Summary(value=[Summary.Value(tag=tag, tensor=tensor, metadata=plugin("text"))]), step)

    def layout(self, categories: Mapping[str, Charts]) -> None:
        """Charts of the custom scalars tab: category -> title -> regular expressions of tags (lines), or
        (value, lower, upper) tags (lines with a band)."""
        layout = layout_pb2.Layout(
            category=[
                layout_pb2.Category(title=title, chart=[chart(name, tags) for name, tags in charts.items()])
                for title, charts in categories.items()
            ]
        )
        tensor = TensorProto(
            dtype="DT_STRING", string_val=[layout.SerializeToString()], tensor_shape=TensorShapeProto()
        )
        value = Summary.Value(tag="custom_scalars__config__", tensor=tensor, metadata=plugin("custom_scalars"))
        self._write(Summary(value=[value]), 0)

    def begin_hparams(self, hparams: Mapping[str, HParam], metrics: Sequence[str], first: Sequence[str] = ()) -> None:
        """This run's line in the hparams tab. The tab has the columns that one of the runs names, so all name the same
        hyperparameters and metrics; a metric is the last value of the scalar of its name. first: leftmost columns."""
        numbers = {name: not isinstance(value, str) for name, value in hparams.items()}
        columns = [
            api_pb2.HParamInfo(
                name=name,
                type=api_pb2.DATA_TYPE_FLOAT64 if number else api_pb2.DATA_TYPE_STRING,
                differs=name in first,  # the tab sorts by it
            )
            for name, number in numbers.items()
        ]  # fmt: skip
        judged = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in metrics]
        experiment = api_pb2.Experiment(hparam_infos=columns, metric_infos=judged)
        start = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
        for name, value in hparams.items():
            if isinstance(value, str):
                start.hparams[name].string_value = value
            else:
                start.hparams[name].number_value = value
        self._hparams("experiment", plugin_data_pb2.HParamsPluginData(experiment=experiment))
        self._hparams("session_start_info", plugin_data_pb2.HParamsPluginData(session_start_info=start))

    def end_hparams(self) -> None:
        """The run is finished."""
        end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
        self._hparams("session_end_info", plugin_data_pb2.HParamsPluginData(session_end_info=end))

    def _hparams(self, name: str, data: plugin_data_pb2.HParamsPluginData) -> None:
        tag, metadata = f"_hparams_/{name}", plugin("hparams", data.SerializeToString())
        # The plugin reads the metadata alone; without a value TensorBoard would not list the tag.
        empty = TensorProto(dtype="DT_FLOAT", tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=0)]))
        self._write(Summary(value=[Summary.Value(tag=tag, tensor=empty, metadata=metadata)]), 0)

    def graph(self, nodes: Sequence[Node]) -> None:
        found = GraphDef(node=[node_def(node) for node in nodes], versions=VersionDef(producer=22))
        self._event(Event(graph_def=found.SerializeToString()))

    def close(self) -> None:
        self.file.close()


def plugin(name: str, content: bytes = b"") -> SummaryMetadata:
    return SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=name, content=content))


def chart(title: str, tags: Sequence[str] | Sequence[tuple[str, str, str]]) -> layout_pb2.Chart:
    lines = [tag for tag in tags if isinstance(tag, str)]
    if lines:
        return layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=lines))
    series = [
        layout_pb2.MarginChartContent.Series(value=tag[0], lower=tag[1], upper=tag[2])
        for tag in tags
        if not isinstance(tag, str)
    ]
    return layout_pb2.Chart(title=title, margin=layout_pb2.MarginChartContent(series=series))


def node_def(node: Node) -> NodeDef:
    about = {name: AttrValue(s=text.encode()) for name, text in node.about.items()}
    if node.shape is not None:
        extent = TensorShapeProto(dim=[TensorShapeProto.Dim(size=n) for n in node.shape])
        about["_output_shapes"] = AttrValue(list=AttrValue.ListValue(shape=[extent]))
    return NodeDef(name=node.name, op=node.kind, input=list(node.inputs), attr=about)
