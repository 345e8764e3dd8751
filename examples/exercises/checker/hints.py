"""The hints for each exercise, from weak to strong. The check prints the one that you ask for."""

FIRST_PART = {
    1: (
        "Count permits, not connections. A thread takes a permit before it does anything else. "
        "It gives the permit back when it returns its connection, or if it could not get one. "
        "Which class of `threading` counts permits, and can wait for one with a timeout?",
        "threading.Semaphore(max_connections) counts the permits: acquire(timeout=timeout) returns "
        "False when the time is up. You also need a list of the idle connections, a record of the "
        "checked-out ones, and a Lock that protects both. Hold the lock only to read or change "
        "them; release it before you call create, is_healthy or close.",
        "get_connection: acquire a permit or raise TimeoutError. Put the rest into a try block, "
        "whose except clause releases the permit and raises again. While there is an idle "
        "connection: pop one (with the lock), call is_healthy (without it), and use the connection "
        "or close it. If none is idle: self._retrier.call(self._create). Record it as checked out "
        "by id(connection), which works for any object. release_connection: with the lock, raise "
        "ValueError unless it is recorded as checked out, otherwise move it to the idle ones; then "
        "release the permit. connection: get one, then yield it inside try/finally.",
    ),
    2: (
        "Three numbers are enough: the budget, what is spent, and what is reserved. What remains "
        "follows from them. Which of them does each method change, and by how much? And what must "
        "happen in one step, so that no other thread can run in between?",
        "Keep `self._spent = Decimal(0)`, a set of the open reservations, and a Lock. reserve: "
        "first compute the amount (settle can use the same method for the cost of some tokens). "
        "Then, while holding the lock, compare it with what remains and add the reservation. "
        "settle and release: while holding the lock, raise ValueError unless the reservation is "
        "open, then close it.",
        "The cost is (prompt_tokens * price.prompt + tokens * price.completion) / 1_000_000: an "
        "int times a Decimal is a Decimal, and dividing by a power of ten loses nothing. reserved "
        "is sum((r.amount for r in self._open), Decimal(0)). reserve: while holding the lock, "
        "raise if the amount is more than budget - spent - reserved, otherwise add a Reservation "
        "to self._open. A method that holds the lock must not read a property that takes it: a "
        "thread that takes a Lock twice waits forever.",
    ),
    3: (
        "Start with record and the error rate: keep (time, success) pairs, the oldest first. You "
        "add at one end and remove at the other; which class of `collections` is fast at both "
        "ends? Then look at the two checks: what do they have in common?",
        "Use a deque and a Lock. When you record and when you count, remove pairs from the left "
        "while they are older than now - window_seconds. Both checks make a call, measure the "
        "time, and turn a MistralError into a status. Write that once, as a method that takes the "
        "call and the status to report if it fails.",
        "_probe(call, status_if_it_fails): start = time.monotonic(); try call(). After a "
        "MistralError the status is status_if_it_fails and the time None; otherwise 'up' and "
        "time.monotonic() - start. check_health: self._probe(self._client.models, 'down'). "
        "check_chat: return the result of check_health unless it is 'up'; else "
        "self._probe(lambda: self._client.chat(messages, max_tokens=1), 'degraded'). Hold no lock "
        "while either call runs.",
    ),
    4: (
        "`retrier.call(operation)` and `breaker.call(operation)` call the function that they get; "
        "`limiter.acquire()` waits for a slot. Write each of the first three points as 'X is "
        "inside Y'. Which order follows from that?",
        "The breaker sees each attempt, so it is called once per attempt, inside the retries. An "
        "open circuit uses no slot, so the slot is taken inside the breaker. Two small functions "
        "are enough: one waits for a slot and calls the API, the other passes the first to the "
        "breaker.",
        "def paced_call(): limiter.acquire(); return client.chat(messages). "
        "def attempt(): return breaker.call(paced_call). At the end: return retrier.call(attempt). "
        "CircuitOpenError is not retryable, so the retries end when the circuit opens.",
    ),
    5: (
        "Backoff and jitter only decide when a retry is sent. While the service is down, three "
        "attempts per call are three times the load, however long they wait. What could limit the "
        "number of retries of all calls together? Where must you keep it, so that all calls share "
        "it?",
        "`Retrier` has a budget: a retry costs a token, and successes earn tokens. Every Retrier "
        "has a budget of its own, so the place where you make the Retrier decides what is shared. "
        "A circuit breaker around each attempt ends the storm as well, but only with a short "
        "recovery_timeout: while it is open, every call fails.",
        "Import Retrier from lib.retry. In __init__: self._retrier = Retrier(max_attempts=3). In "
        "call: return await self._retrier.call_async(self._send).",
    ),
}

STRETCH_PART = {
    1: (
        "The rules of this part are about what else can happen: a timeout of 0, a close() that "
        "fails, Ctrl-C, a connection that counts as False, two threads at the same moment. For "
        "each line of yours: what if it raises an error, and what if another thread runs just "
        "before it?",
        "`if timeout` is False for 0, and `if connection` for a connection whose len() is 0: "
        "compare with None. KeyboardInterrupt is not an Exception: `except Exception` does not "
        "free the permit. `self._free += 1` is three steps: without the lock, another thread can "
        "run between them.",
        "Let the standard library wait: threading.Semaphore, queue.Queue, or a Condition whose "
        "loop looks at what it waits for after each wait(), with the time that is left. Keep all "
        "state in __init__, none in the class. Wrap close() in contextlib.suppress(Exception), "
        "and what follows the permit in try/except BaseException or try/finally.",
    ),
    2: (
        "Which of your lines change a number that another thread reads? Each of them needs the "
        "lock, also in release and in the properties.",
        "`self._spent += cost` reads, adds and writes: without the lock, one of two additions is "
        "lost. Close the reservation and book its cost in the same `with` block. Check the tokens "
        "of settle before you change anything.",
        "A set finds a reservation by identity, because Reservation is declared with eq=False: "
        "one of another controller, or one made by hand, is not in it. Use `raise ValueError` "
        "unless it is in the set, then remove it, in the same `with` block. Read prices from "
        "self._prices, and let Decimal compute: float() loses digits.",
    ),
    3: (
        "Which numbers of yours come from the task, and which did you choose? Which errors do you "
        "catch? Which clock do you read?",
        "Use self._window_seconds, and a deque without maxlen. Catch MistralError and nothing "
        "else: a TypeError is a bug, and must be seen. time.time() is the time of day, which may "
        "be set while the program runs; time.monotonic() never goes back.",
        "Treat every MistralError of the chat alike, whatever its class. Add the error rate to "
        "every result, also to those of check_chat. While you count, hold the lock: another thread "
        "may add a pair between two of your steps.",
    ),
    4: (
        "A timeout is a duration, a deadline a point in time. What is left until the deadline "
        "changes with each step. Where do you need it?",
        "deadline = time.monotonic() + seconds, once, at the start. Then three places ask for "
        "deadline - time.monotonic(): the wait for the slot, the request, and the beginning of an "
        "attempt. If nothing is left, raise TimeoutError: it has no `retryable`, so the retries "
        "end.",
        "def paced_call(): limiter.acquire(timeout=left()); return "
        "client.with_options(total_timeout=left()).chat(messages). Call left() in attempt(), too, "
        "before breaker.call: an error inside the breaker counts as a failure of the service.",
    ),
    5: (
        "A counter of the calls in progress is enough. When does it go up, and when must it go "
        "down? How can a call end?",
        "Compare and add without an `await` in between: then no other task can run. A call ends "
        "with a response, an error or a cancellation; which statement of Python runs after all "
        "three?",
        "if self._in_progress >= self._max_calls: raise TooManyCallsError. Otherwise add 1, and "
        "`try: return await self._client.call()`, `finally:` subtract 1.",
    ),
}
