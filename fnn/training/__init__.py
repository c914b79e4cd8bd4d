"""A training loop around one's own pure step, evaluation over a data set, and predictions."""

from fnn.training.evaluate import evaluate
from fnn.training.fit import Epoch, fit
from fnn.training.predict import Prediction, predict

__all__ = ["Epoch", "Prediction", "evaluate", "fit", "predict"]
