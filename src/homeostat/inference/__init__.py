"""Inference: answers for new inputs, when to stop thinking about each, and what can be promised of that."""

from homeostat.engine import PENDING
from homeostat.inference.breadth import Breadth
from homeostat.inference.fit import fit_stopping
from homeostat.inference.frontier import Frontier, FrontierPoint, breadth_frontier
from homeostat.inference.policy import Guarantee, Policy, Selection
from homeostat.inference.predict import Prediction, predict
from homeostat.inference.puzzles import Answer, answer_puzzles
from homeostat.inference.stream import PredictedExample, PredictionStream, predict_stream
from homeostat.probes.courses.condition import Condition

__all__ = [
    "PENDING",
    "Answer",
    "Breadth",
    "Condition",
    "Frontier",
    "FrontierPoint",
    "Guarantee",
    "Policy",
    "PredictedExample",
    "Prediction",
    "PredictionStream",
    "Selection",
    "answer_puzzles",
    "breadth_frontier",
    "fit_stopping",
    "predict",
    "predict_stream",
]
