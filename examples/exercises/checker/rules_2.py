"""The rules of exercise 2. You need not read them to do the exercise."""

from __future__ import annotations

import random
from decimal import Decimal
from functools import partial
from typing import Any

from examples.exercises.checker.explore import RunThreads
from examples.exercises.checker.rules import explore, missing, rule, stretch
from lib.client import Usage

# 1000 prompt tokens cost 1 USD, 1000 completion tokens cost 2 USD.
PRICES = 'prices={"round": Price(prompt=Decimal(1000), completion=Decimal(2000))}'


def controller(solution: Any, budget: str) -> Any:
    price = solution.Price(prompt=Decimal(1000), completion=Decimal(2000))
    return solution.CostController(Decimal(budget), prices={"round": price})


def usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    return Usage(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens)


def differs(control: Any, spent: str, reserved: str, remaining: str) -> str | None:
    """Return the three amounts, or None if they are as expected; float is allowed here."""
    found = (control.spent, control.reserved, control.remaining)
    expected = (spent, reserved, remaining)
    if [Decimal(str(amount)) for amount in found] == [Decimal(amount) for amount in expected]:
        return None
    return f"spent {found[0]}, reserved {found[1]}, remaining {found[2]}"


@rule(
    "reserve sets the worst case aside",
    called=f'CostController(Decimal(10), {PRICES}), reserve("round", 1000, 1000)',
    expected="a reservation of 3 USD; spent 0, reserved 3, remaining 7",
)
def reserves_the_worst_case(solution: Any) -> str | None:
    control = controller(solution, "10")
    reservation = control.reserve("round", 1000, 1000)
    if not isinstance(reservation, solution.Reservation):
        return f"{reservation!r}, which is not a Reservation"
    if Decimal(str(reservation.amount)) != 3:
        return f"a reservation of {reservation.amount} USD"
    return differs(control, "0", "3", "7")


@rule(
    "the whole budget can be reserved, and no more",
    called='CostController(Decimal(3), ...), reserve("round", 1001, 1000), '
    'reserve("round", 1000, 1000)',
    expected="BudgetExceededError, with nothing set aside; then a reservation of 3 USD",
    needs=(reserves_the_worst_case,),
)
def refuses_beyond_the_budget(solution: Any) -> str | None:
    control = controller(solution, "3")
    too_much = partial(control.reserve, "round", 1001, 1000)
    problem = missing(solution.BudgetExceededError, too_much) or differs(control, "0", "0", "3")
    if problem:
        return problem
    try:
        control.reserve("round", 1000, 1000)
    except solution.BudgetExceededError:
        return "BudgetExceededError both times"
    return differs(control, "0", "3", "0")


@rule(
    "what is reserved is not available to the next call",
    called='CostController(Decimal(5), ...), reserve("round", 1000, 1000) twice, before either '
    "is settled",
    expected="BudgetExceededError the second time: 3 + 3 is more than 5",
    needs=(refuses_beyond_the_budget,),
)
def reservations_count(solution: Any) -> str | None:
    control = controller(solution, "5")
    control.reserve("round", 1000, 1000)
    return missing(solution.BudgetExceededError, partial(control.reserve, "round", 1000, 1000))


@rule(
    "threads together cannot reserve more than the budget",
    called='CostController(Decimal(2), ...); 3 threads call reserve("round", 1000, 0)',
    expected="2 reservations of 1 USD, 1 BudgetExceededError",
    needs=(reservations_count,),
)
def threads_cannot_overspend(solution: Any) -> str | None:
    def scenario(run: RunThreads) -> str | None:
        control = controller(solution, "2")
        reserve = partial(control.reserve, "round", 1000, 0)
        outcomes = run(reserve, reserve, reserve, expected=solution.BudgetExceededError)
        made = sum(isinstance(outcome, solution.Reservation) for outcome in outcomes)
        return differs(control, "0", "2", "0") if made == 2 else f"reservations: {made}"

    return explore(solution, scenario)


@rule(
    "settle spends what the call cost, and frees the rest",
    called="the same, then settle(reservation, usage) with 1000 prompt tokens and 100 completion "
    "tokens",
    expected="spent 1.2, reserved 0, remaining 8.8",
    needs=(reserves_the_worst_case,),
)
def settles_with_the_usage(solution: Any) -> str | None:
    control = controller(solution, "10")
    control.settle(control.reserve("round", 1000, 1000), usage(1000, 100))
    return differs(control, "1.2", "0", "8.8")


@rule(
    "a response that cost more than was reserved is spent in full",
    called='CostController(Decimal(1), ...), reserve("round", 0, 500), settle with 1500 completion '
    'tokens, reserve("round", 1, 0)',
    expected="spent 3, reserved 0, remaining -2; then BudgetExceededError",
    needs=(
        settles_with_the_usage,
        refuses_beyond_the_budget,
    ),
)
def spends_more_than_reserved(solution: Any) -> str | None:
    control = controller(solution, "1")
    control.settle(control.reserve("round", 0, 500), usage(0, 1500))
    again = partial(control.reserve, "round", 1, 0)
    return differs(control, "3", "0", "-2") or missing(solution.BudgetExceededError, again)


@rule(
    "release frees the whole reservation",
    called='CostController(Decimal(10), ...), release(reserve("round", 1000, 1000))',
    expected="spent 0, reserved 0, remaining 10",
    needs=(reserves_the_worst_case,),
)
def release_frees(solution: Any) -> str | None:
    control = controller(solution, "10")
    control.release(control.reserve("round", 1000, 1000))
    return differs(control, "0", "0", "10")


@rule(
    "a response without usage costs what was reserved",
    called='CostController(Decimal(10), ...), settle(reserve("round", 1000, 1000), None)',
    expected="spent 3, reserved 0, remaining 7",
    needs=(settles_with_the_usage,),
)
def no_usage_costs_the_reservation(solution: Any) -> str | None:
    control = controller(solution, "10")
    control.settle(control.reserve("round", 1000, 1000), None)
    return differs(control, "3", "0", "7")


@rule(
    "a reservation is closed once",
    called="CostController(Decimal(10), ...), 3 reservations of 1 USD; r1 is settled, r2 released; "
    "then settle(r1), release(r1), settle(r2), release(r2)",
    expected="4 ValueErrors; at the end spent 1, reserved 1, remaining 8",
    needs=(settles_with_the_usage, release_frees),
)
def closed_once(solution: Any) -> str | None:
    control = controller(solution, "10")
    settled, released, _ = [control.reserve("round", 1000, 0) for _ in range(3)]
    control.settle(settled, usage(1000, 0))
    control.release(released)
    for name, reservation in [("r1", settled), ("r2", released)]:
        if problem := not_closed(control, reservation):
            return f"{problem}({name})"
    return differs(control, "1", "1", "8")


def not_closed(control: Any, reservation: Any) -> str | None:
    """Return None if neither settle nor release takes the reservation."""
    if problem := missing(ValueError, partial(control.settle, reservation, usage(1000, 0))):
        return f"{problem}, for settle"
    if problem := missing(ValueError, partial(control.release, reservation)):
        return f"{problem}, for release"
    return None


@rule(
    "a model without a price is an UnknownModelError",
    called='CostController(Decimal(10), ...), reserve("gpt-unknown", 1, 1), '
    'reserve("gpt-unknown", 0, 0)',
    expected="2 UnknownModelErrors, with nothing set aside",
    needs=(reserves_the_worst_case,),
)
def unknown_model(solution: Any) -> str | None:
    control = controller(solution, "10")
    for tokens in (1, 0):
        reserve = partial(control.reserve, "gpt-unknown", tokens, tokens)
        if problem := missing(solution.UnknownModelError, reserve):
            return f"{problem}, for {tokens} tokens"
    return differs(control, "0", "0", "10")


@rule(
    "no call is too cheap to be counted",
    called="CostController(Decimal(1)), then 1000 calls of mistral-small-latest with 1 prompt "
    "token and 1 completion token: 0.00000075 USD each",
    expected="spent Decimal 0.00075, remaining Decimal 0.99925",
    needs=(settles_with_the_usage,),
)
def cheap_calls_count(solution: Any) -> str | None:
    control = solution.CostController(Decimal(1))
    for _ in range(1000):
        control.settle(control.reserve("mistral-small-latest", 1, 1), usage(1, 1))
    return inexact((control.spent, "0.00075"), (control.remaining, "0.99925"))


@stretch(
    "two controllers share nothing",
    called="2 controllers with a budget of 10; the first one settles a call of 1 USD and reserves "
    "another one",
    expected="spent 1, reserved 1, remaining 8; and for the second one 0, 0, 10",
    needs=(settles_with_the_usage,),
)
def controllers_share_nothing(solution: Any) -> str | None:
    one, other = controller(solution, "10"), controller(solution, "10")
    one.settle(one.reserve("round", 1000, 0), usage(1000, 0))
    one.reserve("round", 1000, 0)
    if problem := differs(one, "1", "1", "8"):
        return problem
    problem = differs(other, "0", "0", "10")
    return problem and f"{problem}, for the second one"


@stretch(
    "money is spent in the same step in which its reservation is closed",
    called='CostController(Decimal(1), ...), r = reserve("round", 1000, 0); thread 1 settles r '
    'with a usage of 1 USD, thread 2 calls reserve("round", 1000, 0)',
    expected="BudgetExceededError in thread 2, whichever is first",
    needs=(settles_with_the_usage, reservations_count),
)
def settles_in_one_step(solution: Any) -> str | None:
    def scenario(run: RunThreads) -> str | None:
        control = controller(solution, "1")
        settle = partial(control.settle, control.reserve("round", 1000, 0), usage(1000, 0))
        reserve = partial(control.reserve, "round", 1000, 0)
        _, outcome = run(settle, reserve, expected=solution.BudgetExceededError)
        if isinstance(outcome, solution.BudgetExceededError):
            return differs(control, "1", "0", "0")
        return "another reservation of 1 USD"

    return explore(solution, scenario)


@stretch(
    "nothing is lost when threads settle at the same moment",
    called="CostController(Decimal(8), ...), 2 reservations of 1 USD; 2 threads settle one each "
    "with a usage of 0.5 USD",
    expected="spent 1, reserved 0, remaining 7",
    needs=(settles_with_the_usage,),
)
def threads_lose_nothing(solution: Any) -> str | None:
    def scenario(run: RunThreads) -> str | None:
        control = controller(solution, "8")
        reservations = [control.reserve("round", 1000, 0) for _ in range(2)]
        run(*[partial(control.settle, each, usage(500, 0)) for each in reservations])
        return differs(control, "1", "0", "7")

    return explore(solution, scenario)


@stretch(
    "nothing is lost when threads release and reserve at the same moment",
    called="CostController(Decimal(8), ...), 2 reservations of 1 USD; threads 1 and 2 release one "
    'each, thread 3 calls reserve("round", 1000, 0)',
    expected="spent 0, reserved 1, remaining 7",
    needs=(
        release_frees,
        threads_cannot_overspend,
    ),
)
def releases_lose_nothing(solution: Any) -> str | None:
    def scenario(run: RunThreads) -> str | None:
        control = controller(solution, "8")
        reservations = [control.reserve("round", 1000, 0) for _ in range(2)]
        releases = [partial(control.release, each) for each in reservations]
        run(*releases, partial(control.reserve, "round", 1000, 0))
        return differs(control, "0", "1", "7")

    return explore(solution, scenario)


@stretch(
    "the amounts are right at every moment while another thread settles",
    called="CostController(Decimal(4), ...), 2 reservations of 1 USD; thread 1 settles one with a "
    "usage of 1 USD, thread 2 reads remaining and reserved",
    expected="remaining 2, reserved 2 or 1",
    needs=(settles_in_one_step,),
)
def amounts_are_consistent(solution: Any) -> str | None:
    def scenario(run: RunThreads) -> str | None:
        control = controller(solution, "4")
        first, _ = [control.reserve("round", 1000, 0) for _ in range(2)]
        settle = partial(control.settle, first, usage(1000, 0))
        _, (remaining, reserved) = run(settle, lambda: (control.remaining, control.reserved))
        if remaining == 2 and reserved in (1, 2):
            return None
        return f"remaining {remaining}, reserved {reserved}"

    return explore(solution, scenario)


@stretch(
    "a reservation is closed once, by however many threads",
    called="CostController(Decimal(8), ...), one reservation of 1 USD; threads 1 and 2 settle it, "
    "thread 3 releases it",
    expected="2 ValueErrors; spent 1 or 0, reserved 0, and the rest remaining",
    needs=(closed_once,),
)
def threads_close_once(solution: Any) -> str | None:
    def scenario(run: RunThreads) -> str | None:
        control = controller(solution, "8")
        reservation = control.reserve("round", 1000, 0)
        settle = partial(control.settle, reservation, usage(1000, 0))
        release = partial(control.release, reservation)
        outcomes = run(settle, settle, release, expected=ValueError)
        errors = sum(isinstance(outcome, ValueError) for outcome in outcomes)
        if errors != 2:
            return f"ValueErrors: {errors}"
        spent, remaining = ("0", "8") if outcomes[2] is None else ("1", "7")
        return differs(control, spent, "0", remaining)

    return explore(solution, scenario)


@stretch(
    "a reservation of another controller is not taken, even if it looks the same",
    called="2 controllers with a budget of 10, each with a reservation of 1 USD; the first one "
    "settles and releases that of the second one",
    expected="2 ValueErrors; spent 0, reserved 1, remaining 9 in both",
    needs=(closed_once, controllers_share_nothing),
)
def takes_no_foreign_one(solution: Any) -> str | None:
    one, other = controller(solution, "10"), controller(solution, "10")
    one.reserve("round", 1000, 0)
    if problem := not_closed(one, other.reserve("round", 1000, 0)):
        return problem
    return differs(one, "0", "1", "9") or differs(other, "0", "1", "9")


@stretch(
    "a negative number of tokens is a ValueError, and changes nothing",
    called='CostController(Decimal(10), ...), reserve("round", -1, 10), reserve("round", 10, -1); '
    'reserve("round", 1000, 0) and settle it with (-1, 10) and (10, -1) tokens',
    expected="4 ValueErrors; at the end spent 0, reserved 1, remaining 9",
    needs=(settles_with_the_usage,),
)
def negative_tokens(solution: Any) -> str | None:
    control = controller(solution, "10")
    pairs = [(-1, 10), (10, -1)]
    for tokens in pairs:
        if problem := missing(ValueError, partial(control.reserve, "round", *tokens)):
            return f"{problem}, for reserve with {tokens}"
    reservation = control.reserve("round", 1000, 0)
    for tokens in pairs:
        if problem := missing(ValueError, partial(control.settle, reservation, usage(*tokens))):
            return f"{problem}, for settle with {tokens}"
    return differs(control, "0", "1", "9")


@stretch(
    "money is exact: no amount passes through float",
    called="a price of 0.123456789012345678901 USD per million prompt tokens, which no float can "
    "hold; CostController(Decimal(1), ...), reserve and settle 1 prompt token; then the same with "
    "a budget of 0.0000001234567890123456789",
    expected="Decimal, with every digit: reserved, then spent 0.000000123456789012345678901, "
    "remaining 0.999999876543210987654321099; then BudgetExceededError",
    needs=(
        cheap_calls_count,
        refuses_beyond_the_budget,
    ),
)
def money_is_exact(solution: Any) -> str | None:
    price = solution.Price(prompt=Decimal("0.123456789012345678901"), completion=Decimal(1))
    control = solution.CostController(Decimal(1), prices={"exact": price})
    reservation = control.reserve("exact", 1, 0)
    cost, rest = "0.000000123456789012345678901", "0.999999876543210987654321099"
    before = (reservation.amount, cost), (control.reserved, cost), (control.remaining, rest)
    if problem := inexact(*before):
        return f"{problem}, after reserve"
    control.settle(reservation, usage(1, 0))
    if problem := inexact((control.spent, cost), (control.remaining, rest)):
        return problem
    budget = Decimal("0.0000001234567890123456789")
    control = solution.CostController(budget, prices={"exact": price})
    return missing(solution.BudgetExceededError, partial(control.reserve, "exact", 1, 0))


@stretch(
    "the prices are those that the controller gets",
    called="CostController(Decimal(10), prices), with a model and a price that are new in each "
    "check; reserve(model, 1000, 0), and settle it with 1000 prompt tokens",
    expected="the cost that follows from this price",
    needs=(settles_with_the_usage,),
)
def any_price(solution: Any) -> str | None:
    chance = random.SystemRandom()
    model, cents = f"model-{chance.randrange(10**6)}", chance.randrange(1, 1000)
    price = solution.Price(prompt=Decimal(10 * cents), completion=Decimal(0))
    control = solution.CostController(Decimal(10), prices={model: price})
    reservation = control.reserve(model, 1000, 0)
    cost = Decimal(cents) / 100
    if problem := differs(control, "0", str(cost), str(10 - cost)):
        return f"{problem}; the call costs {cost}"
    control.settle(reservation, usage(1000, 0))
    return differs(control, str(cost), "0", str(10 - cost))


def inexact(*amounts: tuple[object, str]) -> str | None:
    """Return the first amount that is not exactly the expected Decimal."""
    for amount, expected in amounts:
        if not isinstance(amount, Decimal) or amount != Decimal(expected):
            return f"{type(amount).__name__} {amount}"
    return None
