"""A ledger: each transfer is approved by a bank, and then booked, exactly once.

The accounts are a table in the journal's own database. So booking a transfer and recording that it
is booked are one commit: kill this program wherever you like, start it again, and no cent is lost
or moved twice. The approval is an action, out in the world: it may be asked for again after a
crash.

    python examples/ledger.py [ledger.db]
"""

import asyncio
import random
import sys
from pathlib import Path

import durable
from durable import Engine, Retry, RunFailed, RunState, Step, Transaction

TABLES = (
    """
    CREATE TABLE IF NOT EXISTS account (
        name  TEXT PRIMARY KEY,
        cents INTEGER NOT NULL CHECK (cents >= 0)
    ) STRICT
    """,
    """
    CREATE TABLE IF NOT EXISTS booking (
        id       INTEGER PRIMARY KEY,
        transfer TEXT NOT NULL,
        account  TEXT NOT NULL,
        cents    INTEGER NOT NULL
    ) STRICT
    """,
)
OPENING = {"ann": 50_000, "bob": 30_000, "cem": 20_000, "dee": 0}
TRANSFERS = 200
FAILURES = 0.2  # of the questions to the bank


class InsufficientFundsError(Exception):
    """There is less in the account than the transfer takes from it."""


@durable.action(retry=Retry(max_attempts=8, initial_backoff=0.02, max_backoff=0.2))
async def approve(payer: str, payee: str, cents: int) -> str:
    """Ask the bank, which does not always answer."""
    await asyncio.sleep(0.005)
    if random.random() < FAILURES:  # noqa: S311  a bad line, not a secret
        raise ConnectionError("the bank does not answer")
    return f"{durable.attempt().run_id}: {payer} to {payee}, {cents}"


@durable.mutation
async def book(tx: Transaction, payer: str, payee: str, cents: int, approval: str) -> int:
    """Move the money; return what the payer has left. All of it happens, or none of it."""
    left: int | None = await tx.fetch_value("SELECT cents FROM account WHERE name = ?", payer)
    if left is None or left < cents:
        raise InsufficientFundsError(payer, left, cents)
    await tx.execute("UPDATE account SET cents = cents + ? WHERE name = ?", cents, payee)
    await tx.execute("UPDATE account SET cents = cents - ? WHERE name = ?", cents, payer)
    await tx.executemany(
        "INSERT INTO booking (transfer, account, cents) VALUES (?, ?, ?)",
        [(approval, payer, -cents), (approval, payee, cents)],
    )
    return left - cents


@durable.query
async def balances(tx: Transaction) -> dict[str, int]:
    """Read all accounts, of one moment: while others book, the sum is right all the same."""
    rows = await tx.fetch_all("SELECT name, cents FROM account ORDER BY name")
    return {row["name"]: row["cents"] for row in rows}


@durable.workflow
async def transfer(step: Step, payer: str, payee: str, cents: int) -> str:
    """Transfer money, if the bank and the account allow it."""
    approval = await step.run(approve(payer, payee, cents), name="ask the bank")
    try:
        left = await book(payer, payee, cents, approval)
    except InsufficientFundsError:
        return "refused"
    seen = await balances()
    assert sum(seen.values()) == sum(OPENING.values())
    return f"{payer} has {left / 100:.2f} left"


async def open_accounts(engine: Engine) -> None:
    """Make the tables, the accounts and the runs: together, and once."""
    draw = random.Random(7)  # noqa: S311  no secret
    async with engine.transaction() as tx:
        for table in TABLES:
            await tx.execute(table)
        if await tx.fetch_one("SELECT name FROM account") is not None:
            return
        await tx.executemany("INSERT INTO account VALUES (?, ?)", OPENING.items())
        for number in range(TRANSFERS):
            payer, payee = draw.sample(sorted(OPENING), 2)
            call = transfer(payer, payee, draw.randrange(1, 20_000))
            await engine.start(call, id=f"transfer-{number}", tx=tx)


async def audit(engine: Engine) -> list[str]:
    """Return what is wrong with the books."""
    booked = 0
    async for run in engine.iter_runs(name=transfer.name):
        if run.state is not RunState.COMPLETED:
            return [f"{run.id} is {run.state}: {run.error}"]
        booked += run.result != "refused"
    wrong: list[str] = []
    async with engine.transaction() as tx:
        accounts = await balances.fn(tx)
        for name, cents in accounts.items():
            moved = await tx.fetch_value("SELECT sum(cents) FROM booking WHERE account = ?", name)
            if OPENING[name] + (moved or 0) != cents:
                wrong.append(f"{name} has {cents}, but the bookings say {moved}")
        count = await tx.fetch_value("SELECT count(DISTINCT transfer) FROM booking")
        twice = await tx.fetch_all("SELECT transfer FROM booking GROUP BY 1 HAVING count(*) != 2")
    if count != booked:
        wrong.append(f"{booked} transfers are done, but {count} are booked")
    wrong += [f"{row['transfer']} is not booked once" for row in twice]
    print(", ".join(f"{name} {cents / 100:.2f}" for name, cents in accounts.items()))
    print(f"{booked} of {TRANSFERS} transfers booked, the others refused")
    return wrong


async def main(path: Path) -> int:
    """Make the transfers, or go on with them, and see that the books are right."""
    async with Engine(path) as engine:
        await open_accounts(engine)
        for number in range(TRANSFERS):
            try:
                await engine.get(f"transfer-{number}").result()
            except RunFailed as failed:
                print(failed)
        wrong = await audit(engine)
    print(*wrong or ["CHECK PASSED: every transfer is booked once, and no cent is lost"], sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else "ledger.db"))))
