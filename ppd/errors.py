"""The errors this package raises on bad input.

Each is a `PPDError` (what the CLI prints as one line, exit code 1) and the built-in that a Python caller would expect.
A message says what was given, what was expected, and what to do next.
"""


class PPDError(Exception):
    """Base of every error caused by input, files or use; never by a bug in this package."""


class ArgumentError(PPDError, ValueError):
    """An argument has a value that is not allowed."""


class ContextError(ArgumentError):
    """A prompt fills the context, so that no answer fits behind it."""


class ModelError(PPDError, ValueError):
    """A checkpoint cannot be read, or is of an architecture that is not supported."""


class PromptTokensError(PPDError, ValueError):
    """Trained prompt tokens cannot be read, or do not fit the model."""


class TreeError(PPDError, ValueError):
    """A tree file is malformed, or does not fit the model or the graph."""


class TokenizerError(PPDError, ValueError):
    """A tokenizer is missing where text was given, or cannot be converted."""


class ExportError(PPDError, RuntimeError):
    """The exported graph does not pass its checks, or the output folder cannot be written."""


class BundleError(PPDError, ValueError):
    """A bundle is damaged, incomplete, or made by a newer version."""


class EngineError(PPDError, RuntimeError):
    """An engine is not installed, or fails on this device."""


class BusyError(PPDError, RuntimeError):
    """A generation was started by a thread that still holds an open stream of the same model."""
