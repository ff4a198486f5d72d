"""Finance documents: reports, loan memos, market notes, fund letters and invoices whose figures add up."""

from __future__ import annotations

from data_gen.grammar import capitalise
from data_gen.prose import Writer
from data_gen.scene import Scene


def statement_table(writer: Writer, scene: Scene) -> str:
    """Revenue by line, total, costs and profit; the lines sum to revenue and profit is revenue less costs."""
    lines = scene.between(3, 5)
    weights = [0.3 + scene.random() for _ in range(lines)]
    amounts = [round(scene.revenue * weight / sum(weights)) for weight in weights]
    amounts[-1] += scene.revenue - sum(amounts)
    names = [capitalise(writer.phrase(scene, "line")) for _ in range(lines)]
    rows = [f"{name}: {amount:,}" for name, amount in zip(names, amounts, strict=True)]
    rows += [f"Total: {scene.revenue:,}", f"Operating costs: {scene.costs:,}"]
    return "\n".join([*rows, f"Operating profit: {scene.revenue - scene.costs:,}"])


def repayment_table(scene: Scene) -> str:
    """A loan repaid in equal parts: interest on the opening balance, closing balance carried to the next year."""
    balance = scene.principal
    part = round(balance / scene.years)
    rows = ["Year, opening balance, interest, repayment, closing balance"]
    for year in range(1, scene.years + 1):
        repayment = part if year < scene.years else balance
        interest = balance * scene.rate / 100
        closing = balance - repayment
        rows.append(f"{scene.year + year}, {balance:,}, {interest:,.2f}, {repayment:,}, {closing:,}")
        balance = closing
        if len(rows) > 5:
            break
    return "\n".join(rows)


def invoice_table(writer: Writer, scene: Scene) -> str:
    """Quantity times price per line, their sum, the tax on it, and the total."""
    rows, subtotal = [], 0
    for _ in range(scene.between(3, 6)):
        quantity, price = scene.between(1, 40), scene.between(150, 25000)  # price in cents
        subtotal += quantity * price
        product = capitalise(writer.phrase(scene, "product"))
        rows.append(f"{product}: {quantity} x {price / 100:,.2f} = {quantity * price / 100:,.2f}")
    percent = scene.pick((5, 7, 8, 10, 19, 20, 21))
    tax = round(subtotal * percent / 100)
    rows.append(f"Subtotal: {subtotal / 100:,.2f}")
    rows.append(f"Tax at {percent}{scene.percent_sign}: {tax / 100:,.2f}")
    return "\n".join([*rows, f"Total due: {scene.money((subtotal + tax) / 100, cents=True)}"])


def holdings_table(scene: Scene) -> str:
    """Weights of a portfolio in percent; with cash they sum to 100.0."""
    rows, left = [], 1000  # tenths of a percent
    for _ in range(scene.between(4, 7)):
        weight = scene.between(20, left // 3)
        left -= weight
        rows.append(f"{scene.new_firm().short}: {scene.percent(weight / 10)}")
    return "\n".join([*rows, f"Cash: {scene.percent(left / 10)}"])


PLANS: tuple[tuple[str, ...], ...] = (
    ("results", "TABLE", "results", "outlook"),
    ("loan", "REPAYMENT", "loan", "ledger"),
    ("markets", "markets", "outlook"),
    ("fund", "HOLDINGS", "markets", "outlook"),
    ("ledger", "INVOICE", "ledger"),
    ("results", "markets", "fund", "outlook"),
    ("ledger", "loan", "ledger", "ledger"),
)
HELD_OUT_PLANS: tuple[tuple[str, ...], ...] = (
    ("outlook", "results", "TABLE", "markets"),
    ("fund", "loan", "REPAYMENT", "outlook"),
    ("markets", "HOLDINGS", "fund", "results"),
    ("ledger", "INVOICE", "loan", "outlook"),
)


def write(writer: Writer, scene: Scene, length: int) -> str:
    """One finance document of about `length` characters."""
    plan = scene.pick(HELD_OUT_PLANS if writer.held_out else PLANS)
    blocks = [capitalise(writer.phrase(scene, "headline"))]
    for step in plan:
        if step == "TABLE":
            blocks.append(statement_table(writer, scene))
        elif step == "REPAYMENT":
            blocks.append(repayment_table(scene))
        elif step == "INVOICE":
            blocks.append(invoice_table(writer, scene))
        elif step == "HOLDINGS":
            blocks.append(holdings_table(scene))
        else:
            if scene.random() < 0.3:
                blocks.append(writer.phrase(scene, "heading"))
            blocks.append(writer.paragraph(scene, step, scene.between(3, 5)))
    writer.fill(blocks, scene, [step for step in plan if step.islower()], length)
    return "\n".join(blocks)
