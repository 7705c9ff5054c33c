"""Calibrate: measure the device and the model, and fold the fastest tree. Calling it calls `calibrate.calibrate`."""

from ppd.verbs import make_callable

make_callable(__name__, "ppd.calibrate.calibrate")
