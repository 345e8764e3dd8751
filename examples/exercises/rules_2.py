"""The rules of exercise 2. To do the exercise you need not read them."""

from __future__ import annotations

from decimal import Decimal
from functools import partial
from typing import Any

from examples.exercises.rules import instead_of, rule, run_in_lockstep
from lib.client import Usage

# One USD for a thousand tokens of prompt, two for a thousand of answer: easy to reckon with.
ROUND = 'prices {"round": 1000 USD in, 2000 USD out, a million tokens}'


def controller(their: Any, budget: str) -> Any:
    price = their.Price(prompt=Decimal(1000), completion=Decimal(2000))
    return their.CostController(Decimal(budget), prices={"round": price})


def usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    return Usage(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens)


def differs(control: Any, spent: str, reserved: str, remaining: str) -> str | None:
    """The three amounts, unless they are these. That they are exact is a rule of its own."""
    found = (control.spent, control.reserved, control.remaining)
    wanted = (spent, reserved, remaining)
    if [Decimal(str(amount)) for amount in found] == [Decimal(amount) for amount in wanted]:
        return None
    return f"spent {found[0]}, reserved {found[1]}, remaining {found[2]}"


@rule(
    "reserve sets the worst case aside",
    called=f'CostController(Decimal(10), {ROUND}), reserve("round", 1000, 1000)',
    expected="a reservation of 3 USD; spent 0, reserved 3, remaining 7",
)
def reserves_the_worst_case(their: Any) -> str | None:
    control = controller(their, "10")
    reservation = control.reserve("round", 1000, 1000)
    if not isinstance(reservation, their.Reservation):
        return f"{reservation!r}, which is no Reservation"
    if Decimal(str(reservation.amount)) != 3:
        return f"a reservation of {reservation.amount} USD"
    return differs(control, "0", "3", "7")


@rule(
    "settle spends what the call did cost, and frees the rest",
    called="the same, then settle(reservation, usage) with 1000 tokens of prompt and 100 of answer",
    expected="spent 1.2, reserved 0, remaining 8.8",
)
def settles_with_the_usage(their: Any) -> str | None:
    control = controller(their, "10")
    control.settle(control.reserve("round", 1000, 1000), usage(1000, 100))
    return differs(control, "1.2", "0", "8.8")


@rule(
    "an answer that cost more than was reserved is spent in full",
    called='CostController(Decimal(1), ...), reserve("round", 0, 500), settle with 1500 tokens of '
    'answer, reserve("round", 1, 0)',
    expected="spent 3, reserved 0, remaining -2; then BudgetExceededError",
)
def spends_more_than_reserved(their: Any) -> str | None:
    control = controller(their, "1")
    control.settle(control.reserve("round", 0, 500), usage(0, 1500))
    again = partial(control.reserve, "round", 1, 0)
    return differs(control, "3", "0", "-2") or instead_of(their.BudgetExceededError, again)


@rule(
    "release frees the whole reservation",
    called='CostController(Decimal(10), ...), release(reserve("round", 1000, 1000))',
    expected="spent 0, reserved 0, remaining 10",
)
def release_frees(their: Any) -> str | None:
    control = controller(their, "10")
    control.release(control.reserve("round", 1000, 1000))
    return differs(control, "0", "0", "10")


@rule(
    "an answer without a usage costs what was reserved",
    called='CostController(Decimal(10), ...), settle(reserve("round", 1000, 1000), None)',
    expected="spent 3, reserved 0, remaining 7",
)
def no_usage_costs_the_reservation(their: Any) -> str | None:
    control = controller(their, "10")
    control.settle(control.reserve("round", 1000, 1000), None)
    return differs(control, "3", "0", "7")


@rule(
    "the budget may be used to the last cent, and not beyond",
    called='CostController(Decimal(3), ...), reserve("round", 1001, 1000), '
    'reserve("round", 1000, 1000)',
    expected="BudgetExceededError, with nothing set aside; then a reservation of 3 USD",
)
def refuses_beyond_the_budget(their: Any) -> str | None:
    control = controller(their, "3")
    too_much = partial(control.reserve, "round", 1001, 1000)
    if problem := instead_of(their.BudgetExceededError, too_much) or differs(
        control, "0", "0", "3"
    ):
        return problem
    try:
        control.reserve("round", 1000, 1000)
    except their.BudgetExceededError:
        return "BudgetExceededError both times"
    return differs(control, "0", "3", "0")


@rule(
    "what is reserved is not there for the next call",
    called='CostController(Decimal(5), ...), reserve("round", 1000, 1000) twice, before either '
    "is settled",
    expected="BudgetExceededError the second time: 3 + 3 is more than 5",
)
def reservations_count(their: Any) -> str | None:
    control = controller(their, "5")
    control.reserve("round", 1000, 1000)
    return instead_of(their.BudgetExceededError, partial(control.reserve, "round", 1000, 1000))


@rule(
    "many threads together can't reserve more than there is",
    called='CostController(Decimal(4), ...), reserve("round", 1000, 0) in 8 threads at once',
    expected="4 reservations of 1 USD, 4 BudgetExceededErrors",
)
def threads_cannot_overspend(their: Any) -> str | None:
    control = controller(their, "4")
    ask = partial(control.reserve, "round", 1000, 0)
    outcomes = run_in_lockstep(their, *[ask] * 8, expected=their.BudgetExceededError)
    made = sum(isinstance(outcome, their.Reservation) for outcome in outcomes)
    if made == 4:
        return differs(control, "0", "4", "0")
    return f"{made} reservations" + (
        ": while one thread had looked and not yet booked, others looked too" if made > 4 else ""
    )


@rule(
    "what threads settle at the same time is all booked",
    called="8 reservations of 1 USD, settle(...) in 8 threads at once with a usage of 0.5 USD",
    expected="spent 4, reserved 0, remaining 4",
)
def threads_lose_nothing(their: Any) -> str | None:
    control = controller(their, "8")
    reservations = [control.reserve("round", 1000, 0) for _ in range(8)]
    run_in_lockstep(their, *[partial(control.settle, each, usage(500, 0)) for each in reservations])
    return differs(control, "4", "0", "4")


@rule(
    "one reservation that many threads settle is spent once",
    called="one reservation of 1 USD, settle(...) of it in 8 threads at once",
    expected="7 ValueErrors; spent 1, reserved 0, remaining 7",
)
def threads_settle_once(their: Any) -> str | None:
    control = controller(their, "8")
    settle = partial(control.settle, control.reserve("round", 1000, 0), usage(1000, 0))
    outcomes = run_in_lockstep(their, *[settle] * 8, expected=ValueError)
    refused = sum(isinstance(outcome, ValueError) for outcome in outcomes)
    return differs(control, "1", "0", "7") if refused == 7 else f"{refused} ValueErrors"


@rule(
    "a model without a price is refused",
    called='CostController(Decimal(10), ...), reserve("gpt-unknown", 1, 1)',
    expected="UnknownModelError, with nothing set aside",
)
def unknown_model(their: Any) -> str | None:
    control = controller(their, "10")
    ask = partial(control.reserve, "gpt-unknown", 1, 1)
    return instead_of(their.UnknownModelError, ask) or differs(control, "0", "0", "10")


@rule(
    "tokens below 0 are a ValueError, and change nothing",
    called='reserve("round", -1, 10), reserve("round", 10, -1); reserve("round", 1000, 0) and '
    "settle it with -1 tokens of answer",
    expected="three ValueErrors; at the end spent 0, reserved 1",
)
def negative_tokens(their: Any) -> str | None:
    control = controller(their, "10")
    for tokens in [(-1, 10), (10, -1)]:
        if problem := instead_of(ValueError, partial(control.reserve, "round", *tokens)):
            return f"{problem}, for reserve with {tokens}"
    reservation = control.reserve("round", 1000, 0)
    if problem := instead_of(ValueError, partial(control.settle, reservation, usage(0, -1))):
        return f"{problem}, for settle"
    return differs(control, "0", "1", "9")


@rule(
    "a reservation is closed once",
    called="r1 is settled, r2 released; then settle(r1), release(r1), settle(r2), release(r2), and "
    "settle with a reservation of another controller's",
    expected="five ValueErrors; at the end spent 1, reserved 0",
)
def closed_once(their: Any) -> str | None:
    control = controller(their, "10")
    settled, released = control.reserve("round", 1000, 0), control.reserve("round", 1000, 0)
    control.settle(settled, usage(1000, 0))
    control.release(released)
    foreign = controller(their, "10").reserve("round", 1000, 0)
    for what, action in [
        ("settle(r1)", partial(control.settle, settled, usage(1000, 0))),
        ("release(r1)", partial(control.release, settled)),
        ("settle(r2)", partial(control.settle, released, usage(1000, 0))),
        ("release(r2)", partial(control.release, released)),
        ("the other controller's", partial(control.settle, foreign, usage(1000, 0))),
    ]:
        if problem := instead_of(ValueError, action):
            return f"{problem}, for {what}"
    return differs(control, "1", "0", "9")


@rule(
    "money is exact",
    called="CostController(Decimal(1)), then 1000 calls of mistral-small-latest, one token in and "
    "one out: 0.00000075 USD each",
    expected="spent Decimal 0.00075, remaining Decimal 0.99925",
)
def money_is_exact(their: Any) -> str | None:
    control = their.CostController(Decimal(1))
    for _ in range(1000):
        control.settle(control.reserve("mistral-small-latest", 1, 1), usage(1, 1))
    found = control.spent, control.remaining
    for amount, wanted in zip(found, (Decimal("0.00075"), Decimal("0.99925")), strict=True):
        if not isinstance(amount, Decimal) or amount != wanted:
            return " and ".join(f"{type(amount).__name__} {amount}" for amount in found)
    return None
