"""Export: a checkpoint and prompt tokens become a bundle. Calling the package calls `exporter.export`."""

from ppd.verbs import make_callable

make_callable(__name__, "ppd.export.exporter")
