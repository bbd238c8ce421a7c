"""A PipelineTask that uses CPU, and nothing else."""

import time

import lsst.pipe.base as pipe_base
import lsst.pipe.base.connectionTypes as connections
from lsst.pex.config import Field


class BurnConnections(pipe_base.PipelineTaskConnections, dimensions=("instrument", "detector")):
    burnt = connections.Output(name="burnt", storageClass="StructuredDataDict", dimensions=("instrument", "detector"))


class BurnConfig(pipe_base.PipelineTaskConfig, pipelineConnections=BurnConnections):
    seconds = Field(dtype=float, default=0.5, doc="CPU s of a quantum.")


class BurnTask(pipe_base.PipelineTask):
    ConfigClass = BurnConfig
    _DefaultName = "burn"

    def run(self):
        began, used = time.monotonic(), time.process_time()
        while time.process_time() < used + self.config.seconds:
            sum(range(1000))
        return pipe_base.Struct(burnt={"began": began, "ended": time.monotonic()})
