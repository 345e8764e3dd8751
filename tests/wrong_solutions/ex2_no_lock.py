"""A controller without a lock: it compares, then books, and others compare in between."""

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
        reservation = Reservation(model, self._cost(model, prompt_tokens, max_tokens))
        if reservation.amount > self.remaining:
            raise BudgetExceededError
        self._open.add(reservation)
        return reservation
