"""Inference: answers for new inputs, with how they were reached."""

from homeostat.inference.predict import Answer, Prediction, answer_puzzles, predict

__all__ = ["Answer", "Prediction", "answer_puzzles", "predict"]
