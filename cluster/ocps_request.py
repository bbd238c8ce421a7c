"""What an `execute` of the OCS asks for, as a batch run."""

import os
import re
import shlex
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from backbone.csc import State
from backbone.ocps import Execute
from cluster.batch.request import BatchRequest, Priority
from schemas.errors import BadData

_NAME = re.compile(r"(?P<stem>\w[\w.-]*?)(?:\.yaml)?(?P<part>#[\w,.-]+)?", re.ASCII)
_SETTING = re.compile(r"\w+:[^\s=]+=.+", re.DOTALL)
_CONFIG, _INPUT = {"-c", "--config"}, {"-i", "--input"}


class OcpsOptions(BaseModel):
    """The command's options; see `pachon ocps --help`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kafka: str
    registry: str
    butler: Path
    pipelines: Path
    runs: Path
    inputs: tuple[str, ...] = Field(min_length=1)
    index: int = Field(ge=0)
    night: Path | None = None
    ray_address: str = ""
    state: State | None = None


def requested(asked: Execute, job_id: str, options: OcpsOptions) -> BatchRequest:
    """The run that is asked for. Raises BadData, naming the field, for what cannot be one."""
    here = version("lsst-pipe-base")
    if asked.version not in {"", here}:
        raise BadData(f"version {asked.version!r}: what runs here is lsst-pipe-base {here}")
    stem, pipeline = _pipeline(asked.pipeline, options.pipelines)
    settings, inputs = _config(asked.config)
    return BatchRequest(
        butler=options.butler, pipeline=pipeline, inputs=(*options.inputs, *inputs), output=f"ocps/{stem}/{job_id}",
        where=asked.data_query, settings=settings, priority=Priority.OCS, night=options.night,
        ray_address=options.ray_address,
        python_path=tuple(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))),
    )  # fmt: skip


def pipelines(folder: Path) -> list[str]:
    """Names of those in a folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _pipeline(name: str, folder: Path) -> tuple[str, str]:
    """The stem of its file, and where it is, with the part of it after a `#`."""
    match = _NAME.fullmatch(name)
    known = pipelines(folder)
    if match is None or match["stem"] not in known:
        raise BadData(f"pipeline {name!r}: there are {', '.join(known) or 'none'}")
    return match["stem"], f"{folder / match['stem']}.yaml{match['part'] or ''}"


def _config(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Settings and further input collections, as words of `pipetask run`."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise BadData(f"config {text!r}: {error}") from error
    settings, inputs, of = [], list[str](), ""
    for word in words:
        if word in _CONFIG | _INPUT and not of:
            of = word
        elif of in _INPUT:
            inputs += word.split(",")
            of = ""
        elif _SETTING.fullmatch(word):
            settings.append(word)
            of = ""
        else:
            raise BadData(f"config: {word!r} is not label:option=value")
    if of:
        raise BadData(f"config: nothing after {of}")
    return tuple(settings), tuple(inputs)
