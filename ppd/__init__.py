"""PPD on the edge: export LLMs with Parallel Prompt Decoding, and run them losslessly in fewer passes."""

__version__ = "0.1.0"
