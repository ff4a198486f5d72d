"""The grammar of law: contracts, statutes, judgments, licences and policies."""

LEGAL_RULES = """
% adj: applicable, written, prior, reasonable, material, exclusive, binding, lawful, confidential, competent, express,
 implied, valid, void, mutual, joint, several, personal, equitable, statutory, contractual, negligent, wilful,
  perpetual,
 irrevocable, non-exclusive, transferable, enforceable, admissible, provisional, subsequent, pending, civil, criminal,
 administrative, judicial, constitutional, procedural, substantive, liable, unlawful, sworn, notarised, authorised,
  disputed,
 executed, severable, injunctive, punitive, compensatory, indemnified, aggrieved
% adv: promptly, expressly, solely, jointly, severally, immediately, forthwith, diligently, reasonably, materially,
  validly,
 irrevocably, knowingly, unreasonably, lawfully, fully, unconditionally, specifically, voluntarily, duly, hereby
%n duty: obligation, right, warranty, representation, undertaking, covenant, duty, liability, claim, remedy, consent,
  waiver,
 licence, permission, interest, privilege, indemnity, guarantee, lien, easement, entitlement, title, immunity, defence,
 objection, restriction, exemption, prohibition, condition, limitation
%n paper: agreement, clause, notice, schedule, deed, contract, will, lease, amendment, order, judgment, statute,
  section,
 regulation, by-law, affidavit, petition, appeal, complaint, motion, summons, warrant, subpoena, certificate, register,
 record, provision, exhibit, annex/annexes, instrument, filing, transcript, permit, injunction, stipulation, treaty,
  decree
%n actor: party, court, tribunal, judge, licensor, licensee, landlord, tenant, employer, employee, plaintiff, defendant,
 appellant, respondent, trustee, beneficiary, guarantor, creditor, debtor, arbitrator, witness, attorney, notary,
  regulator,
 assignee, successor, contractor, subcontractor, applicant, claimant, executor, testator, guardian, juror, prosecutor,
 commissioner, registrar, bailiff, mediator, counterparty, affiliate, agent, authority, minister, magistrate,
  shareholder
%n thing: work, property, premises/premises, document, software, information, good, material, trademark, patent,
  invention,
 asset, vehicle, dwelling, parcel of land, personal data set, trade secret, account, copy, product, domain name,
  building,
 licensed program, source file, sample, vessel, estate, chattel, painting, manuscript, database, crop, shipment
%n breach: breach, default, infringement, violation, misrepresentation, fraud, negligent act, omission, delay, failure,
 termination, assignment, transfer, disclosure, injury, loss, damage/damages, trespass/trespasses, nuisance, insolvency,
 force majeure event, change of control, conflict of interest, dispute, unauthorised use, eviction, seizure, misuse
%n sum: fee, penalty, fine, rent, deposit, royalty, award, compensation payment, cost, interest charge, settlement,
  refund,
 levy, stipend, advance, purchase price, reimbursement, salary
%v do: perform, terminate, assign, disclose, waive, enforce, amend, execute, deliver, grant,
  transfer/transferred/transferred/transferring, revoke,
  withhold/withheld,
 exercise, notify, indemnify, inspect, register, restrict, rescind, acknowledge, adjudicate, serve, file, publish,
  reproduce,
 distribute, modify, occupy, repair, return, destroy, certify, examine, produce, suspend, renew, inherit, convey,
  sublet/sublet/sublet/subletting
%v hold: hold/held, find/found, rule, conclude, observe, decide, determine, affirm, state, declare, reason, emphasise,
  note
%v argue: argue, contend, submit/submitted/submitted/submitting, allege, claim, maintain, assert, deny, testify,
  plead, concede, swear/swore/sworn
%v affect: limit, exclude, impair, extend, prejudice, override/overrode/overridden, void, affect, replace, supplement,
  bar,
 trigger, satisfy, discharge, justify, establish, create, constitute, preclude
% law: contract law, property law, the law of torts, administrative law, copyright law, labour law, family law, tax law,
 evidence law, equity, public policy, due process, good faith, competition law, maritime law, the common law
% court: the Supreme Court, the Court of Appeal, the High Court, the District Court, the Labour Court, the Probate
  Court,
 the Circuit Court, the Commercial Court, the Tribunal, the Land Court, the Administrative Court
% state: the State of Verania, the Republic of Ostland, the Province of Carrow, the Kingdom of Melle, the Canton of Urd,
 the Commonwealth of Tarn, the Free City of Harl, the Federal District
= party
[the|each|either|any|such|the other] {actor}
the {actor}
{role}
the {adj} {actor}
a {actor} [of|appointed by] the {actor}
= role
the [Licensor|Supplier|Lessor|Seller|Employer|Lender|Owner]
the [Licensee|Customer|Lessee|Buyer|Employee|Borrower|Contractor]
= np
{one}
{many}
= one
the {adj} {duty}
any {duty} or {duty}
any {paper} [made|given|issued|signed|filed] [under|pursuant to] {ref}
the {thing} [or any part of it|described in {ref}|in its possession|]
any {breach}
the {paper} of {date}
= many
{adj} {duty.s}
{thing.s} of {party}
all {duty.s} [arising|granted|reserved] under {ref}
{adj} {paper.s}
{duty.s}, {duty.s} and {duty.s}
= ref
this {paper}
[Section|Article|Clause|Paragraph] {count}
[Section|Clause] {points}([a|b|c|d|e|f|i|ii|iii|iv])
the {paper}
[Schedule|Exhibit] {points}
[Section|Article] {points} of the {paper}
{law}
[Part|Chapter|Title] {points}
= when
within {days} [days|business days] [of|after] [the|such|any] {breach}
[no later than|on or before] {date}
upon {adj} notice
at any time [before|after] the [Effective Date|Closing|{breach}]
for a [period|term] of {few} [years|months|weeks]
[before|after] the {paper} [is|was] {do.en}
as soon as [practicable|the {actor} {do.s} the {paper}]
during the [Term|{breach}|proceedings|hearing]
= unless
unless {party} [has|had] {adv} {do.en} {np}
except [where|to the extent that] {law} [requires|provides] otherwise
[subject to|in accordance with|notwithstanding|without prejudice to] {ref}
provided that {party} {do.s} {np}
if {party} [fails|refuses|declines] to {do} {np}
save [as|where] {ref} [permits|provides]
[whether or not|even if] {party} [knew|was told] of the {breach}
without the {adj} consent of {party}
in the event of {np}
= act
{do} {np}
{adv} {do} {np}
{do} or {do} {np}
{do} {np} [and|or] {do} {np}
{do} {np} {when}
= holding
{np} [did|could|may] not {affect} {np}
{party} [had|was bound] to {do} {np}
the {breach} [was|had been] {adj}
{party} {adv} {do.ed} {np}
{law} [does|did] not {affect} {duty.s} of this kind
the {paper} [is|was] {adj} and [may|could] be {do.en}
{np} [must|ought to] be {do.en} {when}
== clause
{party} shall {act}, {unless}.
{party} shall not {act} {unless}.
[No|A] {duty} [shall|may] be {do.en} by {party} {unless}.
{unless}, {party} may {act}.
{np} shall [survive|not survive] [the expiry|any termination|the {breach}] of {ref}.
{party} [warrants|represents|agrees|acknowledges] that {holding}.
[Any|Every] {breach} of {ref} [entitles|obliges] {party} to {act}.
If <{one} is|{many} are> held to be {adj}, {np} shall [remain|continue] {adj}.
{party} shall pay {role} a {sum} of {money} {when}, {unless}.
[Neither|No] {actor} is [liable|responsible] for {np} [caused by|arising from|connected with] {np}.
[Nothing in|No part of] {ref} [shall|is intended to] {affect} {np}.
{ref} [shall be|is] governed by {law} of {state}, and {court} [has|shall have] {adj} jurisdiction.
{party} [keeps|shall keep] {np} confidential {when} {unless}.
Upon {breach} of {ref}, {party} shall {adv} {do} {thing.s} and {do} {np}.
! It is [a condition|agreed|understood] that {party} [will|must] {act} {unless}.
! [Where|Whenever] {party} {do.s} {np}, {role} [is to|will] {act}.
! The [right|power|duty] to {act} [lies|rests] with {party} {unless}.
! [Failure|Refusal] to {act} [counts as|amounts to] a {breach} {unless}.
== parties
This {paper} is made on {date} between {firm_full} of {town} ("{role}") and {partner_full} of {far_town} ("{role}").
{firm} [wishes|intends|desires] to {do} {thing.s} in {state}, and {partner} [is willing|has agreed|undertakes] to {do}
  {np}.
{hero_full} signs on behalf of {firm} and {friend_full} on behalf of {partner}, each {adv} authorised to {do} {paper.s}.
The [price|consideration] [is|shall be] {principal}, payable [in {few} instalments|on {date}|{when}], with interest at
  {rate} a year.
The [Term|Agreement] [begins|commences] on {date} and [ends|expires] {years} years [later|thereafter] {unless}.
{firm} [owns|controls|has title to] the {thing} and {partner} [occupies|uses|maintains] it {unless}.
[Notices|Invoices] to {partner} shall be [sent|delivered] to {hero_full}, {count} {surname} [Street|Road|Lane], {town}.
! On {date} {firm_full} and {partner_full} entered into a {paper} [on|concerning] {thing.s}, [signed|witnessed] by
  {hero_full} and {friend_full}.
! {partner} [takes|accepts] the {thing} [for|against] {principal}; the balance bears interest at {rate} for {years}
  years.
! [The addresses|Particulars] of {partner} are in {ref}, those of {firm} in {ref}.
! [Both firms|The signatories] [confirm|declare] that {holding} {when}.
! [Of the parties|For this purpose], {firm} acts as {role} and {partner} as {role}, and {hero_full} [may|shall] {act}.
== statute
[A person|A {actor}|Every {actor}|No {actor}] [who|that] {do.s} {np} {unless} [commits an offence|is liable to a fine
  of {money}|shall {do} {np}].
In this {paper}, "{thing}" means [any|a] {adj} {thing} [that|which] {party} [may {do}|has {do.en}|is required to {do}].
[The Minister|The Registrar|{court}|The Commissioner] may by {paper} {do} {np} {unless}.
[Subsection|Paragraph] ({points}) [applies|does not apply] to {thing.s} [held|used|acquired|kept] {when}.
[An application|A petition] [under|for the purposes of] {ref} [must|shall] be {do.en} {when} [and|together with] {np}.
A {paper} [takes|shall take] effect on {date} [and|but] [expires|may be {do.en}] after {few} [years|months].
[Any|Each] {actor} aggrieved by {np} may appeal to {court} within {days} days.
<{one} is|{many} are> [repealed|restored|extended] {when}.
The [maximum|minimum] {sum} [under|for the purposes of] {ref} is {money} [for each|per] {thing}.
! [Regulations|Rules] may [require|allow] {party} to {act} {when}.
! [There shall be|The Crown shall keep] a register of {thing.s}, [open to|maintained by] {party}.
! [Officers|Inspectors] of {court} may {act} {when}.
! [Whoever|Anyone who] {do.s} {np} {unless} [forfeits|shall forfeit] {money}.
! [Without a|Lacking a] {adj} {paper}, [nobody|no {actor}] may {act}.
== facts
On {date} the {actor}, {hero_full}, {do.ed} {np} [in|near|at] {town}.
{hero_title} {argue.ed} that {holding}.
The {actor}, {friend_full}, {argue.ed} that {friend_he} {adv} {do.ed} {np}.
By {paper} of {date}, {firm} {do.ed} {np} [to|against|in favour of] {partner}.
{hero_title} [sought|claimed|was awarded] {sum.s} of {money} for {np}.
{court} [granted|dismissed|adjourned|allowed] the {paper} on {date}, and {friend_title} appealed.
[According to|Relying on] the {paper}, {friend_title} {argue.ed} that {holding}.
{few} {actor.s} {argue.ed} that {np} {affect.ed} the {thing}.
[It is undisputed|The record shows] that {hero_title} [had not|never] {do.en} {np} {when}.
! [The dispute|These proceedings] [began|arose] when {friend_title} {do.ed} {np} on {date}.
! [Counsel|The attorney] for {hero_title} {argue.ed} that {holding} {when}.
! {friend_title}, a {actor} [of|living in] {town}, {do.ed} {np} and {argue.ed} {np}.
== reasoning
We {hold} that {holding}, {unless}.
[The question|The issue] [before us|on appeal] is whether {holding}.
{court} [correctly|wrongly|rightly] {hold.ed} that {holding}; see {surname} v. {surname}, {count} {surname} Rep.
  {points} ({old_year}).
In {surname} v. {surname}, {court} {hold.ed} that {holding}.
[Because|Although|Since] {holding}, {holding}.
{law} [requires|permits|forbids] {party} to {act}.
[It follows|We agree|We are satisfied] that {holding}.
The {duty} [relied on|asserted] by {hero_title} [arises|is said to arise] [from|under] {ref}, {unless}.
[Accordingly|For these reasons], the {paper} is [affirmed|reversed|set aside|remanded], and {party} shall {act}.
[The burden|The onus] of {duty} [rests|lay] on {party}, who {do.ed} {np}.
! [Nor|Neither] do we [accept|think] that {holding}: {law} {affect.s} {np}.
! [As was said|As observed] in {surname} v. {surname} ({old_year}), {holding}.
! [The proper|A fair] reading of {ref} is that {party} [may|must] {act}.
! [I would|We therefore] [allow|dismiss] the appeal: {holding}.
== licence
[Permission is|You are|The {actor} is] [granted|given] {np} to {do}, {do} and {do} the {thing} {unless}.
You may {act}, [provided|so long as] {np} [accompanies|appears with] [each|every] copy of the {thing}.
[You may not|Nobody may] {act} {unless}.
The {thing} is provided "as is", without {duty.s} of any kind, [express or implied|statutory or otherwise], {unless}.
In no event shall {party} be liable for {np} [even if advised|however caused] {unless}.
[We|{firm}] [collect|process|store] {thing.s} [when|only if] you {act}, and {do} them {when}.
[Your continued use|Any use] of the {thing} [means|confirms] that you [accept|agree to] {ref}.
You [retain|keep] {duty.s} in the {thing}, but you [grant|give] {firm} {np}.
[We may|{firm} may] {act} [if you|where {actor.s}] {do} {np}.
! [Redistribution|Copying] of the {thing} [requires|presupposes] that you {act}.
! [Requests|Complaints] about {thing.s} [go|should be sent] to {hero_full} at {firm}, who will {act}.
! [Using|Keeping] the {thing} [is|remains] [free|lawful] {unless}.
! {firm} [offers|makes] no {duty} [of fitness|of title] {unless}.
! [Children|Minors|Visitors] [must not|should not] {act} {unless}.
= any
{clause}
{clause}
{parties}
{statute}
{facts}
{reasoning}
{licence}
== title
{thing} {paper}
[Deed|Assignment|Release] of {thing.s}
{surname} v. {surname}
[Terms of Use|Privacy Policy|Licence] of {firm_full}
The {thing.s} ([Registration|Protection|Transfer|Miscellaneous Provisions]) Act {old_year}
! [Memorandum|Notice|Opinion] on {duty.s} and {thing.s}
! [In the matter|Concerning the estate] of {someone}
! [Ordinance|Code] on {thing.s}, {old_year}
== heading
{duty.s}
{thing.s} and {paper.s}
[Definitions|Interpretation|Governing Law|Severability|Notices|Term|Payment|Confidentiality|Entire Agreement]
{breach}
{sum.s}
[Limitation|Transfer|Scope] of {duty.s}
! [On|Concerning] {paper.s}
! {breach.s} and {duty.s}
! [Special|Closing|Final|Common] {paper.s}
"""
