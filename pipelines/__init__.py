"""PipelineTasks of lsst-pipe-base: thin shells round the pure functions of `payloads`, and the pipelines they make."""
