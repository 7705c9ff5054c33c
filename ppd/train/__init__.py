"""Train: prompt tokens for a frozen model. Calling the package calls `trainer.train`."""

from ppd.verbs import make_callable

make_callable(__name__, "ppd.train.trainer")
