"""Serving: answers over HTTP, examples joining and leaving a running batch."""

from homeostat.serving.limits import Limits
from homeostat.serving.residual import ResidualStream
from homeostat.serving.subject import PuzzleSubject, Subject

__all__ = ["Limits", "PuzzleSubject", "ResidualStream", "Subject"]
