"""A controller that is asked first and told later: whoever asks in between is let in too."""

from examples.solutions import ex2_cost_control as right
from examples.solutions.ex2_cost_control import (
    BudgetExceededError,
    Price,
    Reservation,
    UnknownModelError,
)

__all__ = ["BudgetExceededError", "CostController", "Price", "Reservation", "UnknownModelError"]


class CostController(right.CostController):
    def reserve(self, model: str, prompt_tokens: int, max_tokens: int) -> Reservation:
        worst_case = self._cost(model, prompt_tokens, max_tokens)
        if self._spent + worst_case > self._budget:
            raise BudgetExceededError
        reservation = Reservation(model, worst_case)
        self._open.add(reservation)
        return reservation
