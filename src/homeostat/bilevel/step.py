"""What an inner step is: one iteration of an optimiser, as an iterated map on a state that holds the parameters."""

from abc import ABC, abstractmethod
from typing import Any

from homeostat.bilevel.objective import Objective


class InnerStep(ABC):
    """One iteration of an optimiser for a batch of inner problems, as `homeostat.solve` iterates it.

    A subclass is a frozen dataclass of the optimiser's settings. Its state is what one iteration hands to the next: the
    parameters alone, or with a velocity or step sizes beside them.
    """

    def start(self, parameters: Any) -> Any:
        """The state that begins at `parameters`, a nest of tensors with a row for each problem."""
        return parameters

    def parameters(self, state: Any) -> Any:
        """The parameters in a state."""
        return state

    @abstractmethod
    def step(self, objective: Objective, state: Any, context: Any) -> Any:
        """One iteration on every row."""
