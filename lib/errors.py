"""The errors a user can meet: one sentence each, *where: expected what, got what; what to do*."""


class PipelineError(Exception):
    """Base of every error whose message is written for the user; stages print it without a traceback."""


class ConfigError(PipelineError):
    """The experiment file asks for something unknown or impossible."""


class ArtifactError(PipelineError):
    """A result on disk is missing, stale, damaged or in use by another process."""


class DataError(PipelineError):
    """The competition's data are not as expected; the message names the scene and the file."""


class NonFiniteError(PipelineError):
    """A loss became NaN or infinite; the message names the scenes of the batch."""
