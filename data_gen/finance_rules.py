"""The grammar of finance: company results, markets, loans, funds, payments and bookkeeping."""

FINANCE_RULES = """
% adj: strong, weak, steady, higher, lower, modest, sharp, seasonal, recurring, organic, adverse, net, gross, quarterly,
 annual, underlying, robust, softer, record, sluggish, resilient, volatile, cyclical, favourable, muted, broad-based,
 non-recurring, unexpected, persistent, temporary, structural, solid, disappointing, accelerating, flat, double-digit,
 single-digit, comparable, adjusted, statutory, domestic, overseas, wholesale, institutional, discretionary,
  speculative,
 defensive, leveraged, unhedged, deferred, prepaid, accrued, impaired, liquid, illiquid, secured, subordinated, taxable
% quality: tight, ample, stretched, healthy, thin, comfortable, uneven, subdued, brisk, mixed, encouraging, fragile,
  firm,
 soft, stable, patchy, elevated, depressed, balanced, cautious, buoyant, manageable, uncertain, supportive
% adv: slightly, sharply, steadily, modestly, broadly, largely, markedly, roughly, gradually, materially, unexpectedly,
 marginally, notably, substantially, temporarily, mainly, partly, consistently, considerably, meaningfully
%n driver: price, volume, wage, freight cost, input cost, fee, tariff, discount, subscription, order intake,
 backlog, inventory level, raw material cost, energy bill, exchange rate, marketing campaign, rebate, store opening,
 product launch, plant closure, lease, licence fee, royalty, pension charge, tax credit, restructuring charge,
  impairment,
 write-down, supplier contract, interest rate, borrowing cost, hedge, utilisation rate, churn rate, ticket size,
  currency swing
%n item: revenue stream, margin, dividend, receivable, payable, inventory, reserve, provision, depreciation charge,
  budget,
 forecast, balance, deposit, mortgage, bond, share, option, warrant, derivative, portfolio, coupon, premium, claim,
 commission, overdraft, invoice, credit note, ledger, capital expenditure, cash flow, working capital ratio, goodwill
  item,
 deferred tax asset, pension liability/pension liabilities, tax bill, buyback, rights issue, credit line, covenant,
  loan book,
 deposit base, expense ratio, payout, earnings estimate, liquidity buffer, yield, spread, benchmark, maturity/maturities
%n actor: analyst, investor, lender, shareholder, bondholder, borrower, depositor, trader, auditor, regulator, supplier,
 customer, retailer, underwriter, broker, fund manager, treasurer, creditor, policyholder, insurer, pension fund,
  hedge fund,
 central bank, rating agency/rating agencies, market maker, bookkeeper, accountant, board member, chief executive,
  controller
%n segment: retail, wholesale, leasing, card, insurance, logistics, packaging, online, hotel, cargo, software, service,
 wealth management, private banking, consumer credit, commercial property, renewable energy, after-sales, cement,
  dairy, clinic,
 advertising, grocery, footwear, brokerage, asset management, trade finance, chilled food, spare parts, subscription
%n market: equity, government bond, corporate bond, currency, commodity, money, housing, credit, futures, option, oil,
  gas,
 copper, wheat, gold, freight, carbon, repo, swap, emerging-market, small-cap, technology stock, bank stock, utility
%v go: rise/rose/risen, fall/fell/fallen, climb, slip, increase, decline, widen, narrow, ease, recover, improve, weaken,
 strengthen, drop, edge up, rebound, stall, contract, expand, stabilise, tumble, advance, retreat, soften, flatten,
 accelerate, slow, double, deteriorate, normalise
%v do: reduce, raise, cut/cut/cut, refinance, hedge, review, repay/repaid, settle, fund, finance, cover,
  offset/offset/offset,
 delay, approve, restate, report, book, amortise, capitalise, write off/wrote/written,
  underwrite/underwrote/underwritten,
 roll over, pledge, value, monitor, reconcile, allocate, increase, defer, accelerate, absorb, extend, restructure, audit
%v say: say/said, expect, note, estimate, add, warn, believe, explain, argue, confirm, conclude, stress, report,
  suggest,
 caution, reiterate, predict, acknowledge
%v drive: drive/drove/driven, support, weigh on/weighed, lift, affect, limit, boost, dampen, shape, dilute, help,
  hurt/hurt/hurt,
 strain, outweigh, mask, erode, protect
% region: Europe, Asia, Latin America, North America, the Nordics, the Gulf, Southern Europe, the home market, Africa,
  Japan,
 the Baltics, Central Europe, Australia, India, China, Canada, Britain, the euro area
% fin_noun: profitability, liquidity, solvency, leverage, capital, cash, debt, equity, income, expenditure, turnover,
 inflation, funding, cash generation, collateral, duration, credit quality, interest income, fee income, net worth,
 cost discipline, pricing power, sentiment, volatility, trading volume, risk appetite, tax, purchasing power
= period
in the {quarter} quarter
[during|over|for] the [first|second] half
in {year}
in {month}
over the [past|last] {few} [months|weeks|quarters]
[since|until] {month}
by year-end
compared with {last_year}
year on year
[before|after] [tax|the summer|the merger|Easter|the year-end audit]
at [constant currency|the end of {month}|current prices|group level]
= np
the {adj} {item}
{adj} {item.s}
{item.s} [in|from|of] {division}
{fin_noun} in {region}
{adj} {driver.s}
the [new|old|existing|proposed|remaining] {item}
the {item} [held by|owed to|charged to|agreed with|due from] {actor.s}
our {item.s} and {item.s}
{fin_noun} and {fin_noun}
the {adj} {driver} [seen|recorded|agreed] {period}
the [cost|value|size|timing|level] of {item.s}
= division
the {segment} segment
the {segment} [division|business|unit|arm]
{region}
our {segment} [operations|activities]
= change
{percent}
{points} basis points
{adv}
{percent} to {large}
{money}
by {percent}
by [about|nearly|more than|less than] {percent}
from {percent} to {percent}
= cause
as {np} {drive.ed} {fin_noun}
because of {np}
despite {np}
helped by {np}
after {actor.s} {do.ed} {np}
while {np} {go.ed} {change}
owing to {adj} {driver.s}
on the back of {np}
before {np}
as {actor.s} [waited for|looked past|priced in|turned to] {np}
partly because {division} {do.ed} {np}
= aim
to {do} {np}
to {do} {fin_noun}
to {do} {np} without {do.ing} {item.s}
to [keep|bring] {item.s} [below|above|near] {percent} of {fin_noun}
= claim
{fin_noun} will {go} {period}
{np} should {do} {item.s}
{item.s} remain {quality}
{np} may {drive} {fin_noun}
{fin_noun} would {go} if {item.s} {go}
{driver.s} are {adv} [priced in|under control|above plan|behind schedule|out of line with {np}]
{actor.s} will have {aim}
== results
Revenue {rose} {growth} to {revenue} [from|against] {revenue_before} [a year earlier|in {last_year}], {cause}.
Operating costs [came to|reached|stood at] {costs}, [leaving|giving] an operating profit of {profit}.
The operating margin [was|came in at] {margin}, {cause}.
{division} {go.ed} {change} {period}, {cause}.
Sales in {region} {go.ed} {change}, [while|whereas] {region} {go.ed} {change}.
{firm} {do.ed} {np} {period} and {do.ed} {item.s} of {large}.
[Excluding|Adjusted for|Before] {np}, {fin_noun} {go.ed} {change} {period}.
[Capital expenditure|Free cash flow|Net debt|Working capital] [was|stood at|amounted to] {large}, [of which
  {large}|including {large}] [relates to|came from] {division}.
{cause}, {fin_noun} {go.ed} {change}.
The [group|company|firm] [employs|employed] {count} [people|staff] in {division}, [up|down] from {count} [a year
  ago|in {last_year}].
{np} {go.ed} {change}, and {np} {do.ed} {fin_noun}.
{adj} {driver.s} {drive.ed} {division} {period}, but {np} {do.ed} the [effect|shortfall|gap].
The board [proposes|recommends|declared] a dividend of {price} per share, {cause}.
{firm} [opened|closed|sold|acquired] {few} [branches|sites|stores|plants] in {region} {aim}.
Net of {item.s}, {division} [earned|contributed|generated] {large} {period}.
! [Turnover|Income|Group sales] of {revenue} [compares|compared] with {revenue_before} the year before, a {growing} of
  {growth}.
! After [operating expenses|total costs] of {costs} the group [kept|retained] {profit}, or {margin} of [sales|turnover].
! [It was|This was] {division} that {go.ed} most, {change}, {cause}.
! {period}, {np} {go.ed} {change}.
! What {drive.ed} {fin_noun} was {np}: {item.s} {go.ed} {change} [there|in {region}].
== outlook
{firm} [expects|forecasts|targets|plans for] {fin_noun} [of about {large}|of {percent}] {period}.
Management [plans|intends|hopes] {aim}, {cause}.
We [expect|believe|assume] that {claim}.
[Looking ahead|For {next_year}|Over the medium term], {claim}, although {claim}.
The [main|largest|greatest] [risk|uncertainty|threat] is that {np} will {go} [faster|slower|earlier] than
  [planned|budgeted|{actor.s} {say}].
If {driver.s} {go} by {percent}, {fin_noun} would {go} by [about|roughly|up to] {large}.
Our [guidance|budget|base case] assumes {adj} {driver.s} and {adj} {item.s} {period}.
{hero_title}, the [chief financial officer|finance director|treasurer|chief executive], {say.ed} that {claim}.
"{claim}," {hero_title} {say.ed}, {cause}.
{actor.s} {say} {claim}, [yet|but|and] {claim}.
[Investment|Spending|Hiring] in {division} will [depend on|follow|be limited by] {np}.
! [Next year|From {month}|In the coming quarters] the [group|company] will {do} {np} {aim}.
! [Whether|How far] {np} will {go} depends on {np}.
! [Guidance|The plan] for {next_year} [is|remains] {quality}: {claim}.
! [In the view of|According to] {hero_title}, {claim}.
== markets
{market} [prices|markets|yields] {go.ed} {change} on {weekday}, {cause}.
[Shares in|Stock of] {some_firm} {go.ed} {percent} [to {price}|after {actor.s} {do.ed} {np}].
[The dollar|The euro|The yen|Sterling|The franc] {go.ed} [against|versus] [the dollar|most currencies|its peers]
  {cause}.
The yield on the [two|five|ten|thirty]-year [note|bond|benchmark] {go.ed} {points} basis points to {percent}.
{actor.s} {say.ed} {market} markets [were|looked|stayed] {quality} {cause}.
Trading in {market} [contracts|futures|paper] was {quality}, with {np} [setting the tone|in focus|out of favour].
{adv}, {actor.s} {do.ed} {item.s} and [moved|switched] into {market} [paper|funds|positions].
The central bank [left|held|kept] its [policy|deposit|benchmark] rate at {percent}, {cause}.
[Inflation|Unemployment|Industrial output|Retail spending] [came in|was reported] at {percent} [for {month}|{period}],
  [above|below|in line with] what {actor.s} had {say.ed}.
Spreads on {adj} [debt|loans|bonds] {go.ed} by {points} basis points {period}.
One {actor} at {some_firm} {say.ed}: "{claim}."
{some_firm}, {some_firm} and {some_firm} were among the [biggest|notable] [gainers|losers], {go.ing} between {percent}
  and {percent}.
[Buyers|Sellers] [returned|appeared|hesitated] when {market} [prices|futures] {go.ed} [below|above] {price}.
! [Elsewhere|Meanwhile|By contrast], {market} [benchmarks|dealers|indices] {go.ed} {cause}.
! On {weekday} {some_firm} {do.ed} {np}, and its [stock|paper|bonds] {go.ed} {percent}.
! [Few|Most|Some] {actor.s} [doubt|think|fear] that {claim}.
! [Volumes|Prices|Bids] for {market} [delivery|exposure] {go.ed} {change}.
== loan
The [loan|facility|mortgage|credit] of {principal} [bears|carries] interest at {rate} a year, [which is|that is]
  {interest} [per year|annually].
Over {years} years the interest [adds up|comes] to {total_interest}, so that {total_due} [is|becomes] [due|repayable]
  in all.
[Repayment|The first instalment] [starts|falls due] on {date}, and {np} [serves as|is] [collateral|security].
The borrower [may|must|can] {do} {item.s} [early|in part|in full] [for a fee of {price}|with {days} days' notice].
[Debt service|Interest] is [covered|backed] {few} times by {fin_noun} from {division}.
The lender {do.ed} {np} {cause}.
{item.s} [rank|count] [behind|ahead of|equally with] {adj} {item.s} when the [bank|fund|lender] [values|weighs]
  {fin_noun}.
The [loan-to-value|leverage|coverage] ratio [is|stands at] {percent}, [against a limit|compared with a covenant] of
  {percent}.
A [fixed|floating|capped] rate [suits|helps] {actor.s} who [want|wish|need] {aim}.
Should {fin_noun} {go}, the [bank|lender] can {do} {np}.
{hero} [applied for|took out|refinanced] the loan on {date} {aim}.
! [Borrowed money|The sum lent] is {principal}; at {rate} it [costs|earns] {interest} [each year|every twelve months].
! [In total|Altogether] {total_due} [flows|goes] back, {total_interest} of it interest.
! [Missed|Late] [payments|instalments] {go} quickly, and {actor.s} {do} {np}.
! [No|Hardly any] {actor} [lends|commits] {money} [against|on] {item.s} {cause}.
! [Terms|Conditions] [changed|were reset] on {date}, {cause}.
! [Before lending|As a rule], {actor.s} {do} {item.s} {aim}.
== fund
The [fund|portfolio|strategy|mandate] [returned|gained|lost] {percent} {period}, [against|versus] {percent} for its
  benchmark.
[We|The managers] {do.ed} [our|the] [position|holding|weight] in {some_firm} {cause}.
{some_firm} and {some_firm} [added|cost] {points} basis points, {cause}.
[Cash|Gold|The bond sleeve|Equity exposure] [was|made up] {percent} of [assets|the fund], {adv} [more|less] than
  {period}.
[Our|The fund's] {market} holdings {go.ed} {change}, {cause}.
{actor.s} [paid in|withdrew|committed] {large} {period}, and {np} {go.ed}.
[Costs|Ongoing charges] [were|amounted to] {percent} of [assets|net asset value], {adv} [below|above] {last_year}.
[Duration|Currency risk|Concentration|Tracking error] [is|remains] {quality}, because {claim}.
We [prefer|favour|avoid] {adj} {item.s} [over|to] {adj} {item.s} while {fin_noun} [is|stays] {quality}.
! [The largest|Our newest] holding, {some_firm}, {go.ed} {percent} {cause}.
! [Since inception|After fees], [unit holders|investors] have [earned|gained] {percent} [a year|in total].
! [Holders|Members] of the fund {do} {item.s} [monthly|at net asset value], and {np} {go.ed} {period}.
! [Against|Relative to] its peers the fund {go.ed} {change} {cause}.
! [Selling|Trimming|Adding to] {some_firm} let us {do} {np}.
== ledger
[Enter|Record|Post] the {item} in the [account|ledger|journal] for {fin_noun} [before|once] the {actor} has {do.en} it.
[Every|Each] {item} [needs|has] a [date|counterpart|number], an amount and an account; the [debit|credit] side must
  equal the [other|opposite] side.
To {do} a {item}, [open|choose|select] the [register|account|report] and [mark|enter] {price} as {adj}.
[At month-end|On {date}|Each quarter], the {actor} {do.s} the {item.s} [with|against] the bank statement.
A {item} that [is|was] {adv} {adj} [belongs|goes] under {fin_noun}, not under {item.s}.
[Invoices|Bills|Statements] for {driver.s} are [payable|due] within {days} days; [after that|later] a charge of
  {percent} [applies|is added].
The [difference|balance] of {price} [is|was] {do.en} as {adj} {fin_noun}.
[Depreciation|Amortisation] [spreads|allocates] the cost of a {item} over {few} years, [here|that is] {price} a
  [year|month].
[If|When] {driver.s} {go}, [adjust|update] the budget for {fin_noun} and {do} the {item}.
! [Do not|Never] {do} a {item} [until|before] the {actor} [confirms|has seen] the {adj} [entry|voucher|receipt].
! [The report|The trial balance] [shows|lists] {item.s} by [account|month|owner] so that {actor.s} can {do} them.
! [Reconciling|Checking] {item.s} [takes|needs] {few} steps: {do} the {item}, then {do} the {item}.
! [Wrong|Missing] entries [show|appear] as {adj} {fin_noun} {period}.
! [Money|A sum] of {price} [moves|is transferred] from {fin_noun} to the {item} account.
= any
{results}
{outlook}
{markets}
{loan}
{fund}
{ledger}
== headline
{firm_full}: {fin_noun} {go.s} {percent} as {driver.s} {go}
{market} markets: {adj} {item.s}, {quality} {fin_noun}
[Results|Report|Trading update] for the {quarter} quarter of {year}
[Memo|Note|Briefing] on {adj} {item.s}
{firm_full} {do.s} {item.s} in {region}
! [Why|How] {actor.s} {do} {item.s}
! {fin_noun} and {fin_noun} at {firm_full}
! [Statement|Summary] of {item.s}, {month} {year}
= heading
[Results|Performance|Summary|Key figures]
[Outlook|Guidance|Next steps|What to watch]
[Financing|Debt|Terms of the loan]
[Markets|Portfolio|Positioning]
! [Review|At a glance|In brief]
! [Prospects|Assumptions|Planning]
= line
{segment} [sales|revenue|income]
{adj} {item.s}
{item.s}
{driver.s}
{region}
= product
{segment} [service|package|fee|licence]
{adj} {segment} [kit|unit|hours|order]
[office chair|printer paper|server rental|site visit|training day|copper wire|steel
  bolt|paint|pallet|delivery|cleaning|translation|insurance premium|shelf|battery|filter|pump|software seat|audit
  hours|design work]
"""
