"""Errors are policy: which class is raised says what the bus does next."""


class PachonError(Exception):
    """Base of every error that Pachon raises on purpose. Its message names the input at fault."""


class Transient(PachonError):
    """Something outside did not answer; nothing was changed. The bus delivers the event again, with backoff."""


class BadData(PachonError):
    """The input cannot be used. The bus gives up this detector (`DetectorFailed`) and the visit goes on."""


class Broken(PachonError):
    """A bug or a violated invariant. The bus stops the night, loudly."""
