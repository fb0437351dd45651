"""One row on its own: does it get the answer that it got in company?"""

import torch
from torch import Tensor

from homeostat.engine.forward.record import Record
from homeostat.engine.nest import select
from homeostat.engine.norms import noise_floor, row_rms
from homeostat.engine.problem import Problem
from homeostat.errors import ContractError

# Kernels for one row and for many round differently; what this is to find is no rounding.
_UNITS = 1e4


def check_row(problem: Problem, record: Record, row: int, context: list[Tensor]) -> None:
    """Take the last step of a record again with one of its rows alone.

    Costs one row evaluation, when rows are about to leave for the first time: from then on an example whose answer
    depends on the others, or on the size of the batch, would go wrong without a word.

    Args:
        problem: the map.
        record: steps of the rows that are in the batch.
        row: place in that batch.
        context: leaves of the context of that batch.

    Raises:
        ContractError: the answers differ.
    """
    before, after = record.before[-1], record.after[-1]
    index = torch.tensor([row], device=before[0].device)
    at = select(before, problem.layout, index)
    with torch.no_grad():
        try:
            alone = problem.apply(at, select(context, problem.context_layout, index))
        except Exception as error:
            error.add_note(_HINT)
            raise
        for i in record.measured:
            wanted = after[i][row : row + 1].detach()
            size = row_rms(wanted)
            limit = noise_floor([wanted], _UNITS) * torch.maximum(size, row_rms(at[i]))
            if bool(torch.isfinite(size).all()) and bool((row_rms(alone[i] - wanted) > limit).any()):
                raise ContractError(
                    f"step gives row {row} another answer when it is alone than among {len(after[i])} rows. {_HINT}"
                )


_HINT = (
    "The step gets fewer rows as examples finish: what is the same for all of them must be marked homeostat.Shared, "
    "what belongs to each must be part of the context and not of a closure, and noise must come in as context"
)
