"""PipelineTasks as somebody else would bring them: they know nothing of Pachon, nor it of them."""

import os
import signal
import time
from pathlib import Path
from typing import ClassVar

import lsst.pipe.base as pipe_base
import lsst.pipe.base.connectionTypes as connections
from lsst.pex.config import Field


class NumberConnections(pipe_base.PipelineTaskConnections, dimensions=("instrument", "detector")):
    number = connections.Output(name="number", storageClass="StructuredDataDict", dimensions=("instrument", "detector"))


class NumberConfig(pipe_base.PipelineTaskConfig, pipelineConnections=NumberConnections):
    factor = Field(dtype=int, default=10, doc="What a detector's id is multiplied by.")
    misfortune = Field(dtype=str, default="", doc="What goes wrong on detector 7.")
    once = Field(dtype=str, default="", doc="A file; where it is, nothing goes wrong. Made when it does.")


class NumberTask(pipe_base.PipelineTask):
    ConfigClass = NumberConfig
    _DefaultName = "number"
    held: ClassVar[list[bytes]] = []

    def runQuantum(self, butlerQC, inputRefs, outputRefs):
        detector = butlerQC.quantum.dataId["detector"]
        if detector == 7:
            self.go_wrong()
        butlerQC.put({"value": detector * self.config.factor, "pid": os.getpid()}, outputRefs.number)

    def go_wrong(self):
        if self.config.once:
            if Path(self.config.once).exists():
                return
            Path(self.config.once).touch()
        match self.config.misfortune:
            case "raises":
                raise ZeroDivisionError("seven is unlucky")
            case "refuses":
                raise pipe_base.InvalidQuantumError("seven is not for us")
            case "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hangs":
                time.sleep(600)
            case "swells":
                self.held.append(bytes(bytearray(os.urandom(1)) * 600_000_000))
                time.sleep(5)


class SumConnections(pipe_base.PipelineTaskConnections, dimensions=("instrument",)):
    numbers = connections.Input(
        name="number", storageClass="StructuredDataDict", dimensions=("instrument", "detector"), multiple=True
    )
    sum = connections.Output(name="sum", storageClass="StructuredDataDict", dimensions=("instrument",))


class SumConfig(pipe_base.PipelineTaskConfig, pipelineConnections=SumConnections):
    pass


class SumTask(pipe_base.PipelineTask):
    ConfigClass = SumConfig
    _DefaultName = "sum"

    def run(self, numbers):
        return pipe_base.Struct(sum={"value": sum(number["value"] for number in numbers)})
