"""The phrases of docstrings and comments, the words that names are made of, and what modules are about."""

from data_gen.inflection import word_list

CODE_RULES = """
% adj: new, old, empty, valid, current, previous, default, local, sorted, unique, missing, unknown, final, initial,
  nested,
 pending, raw, stale, duplicate, optional, relative, absolute, cached, temporary, internal, encoded, partial, hidden
%v do: return, compute, parse, load, store, remove, update, merge, split/split, count, collect, filter, sort, check,
  build/built,
 find/found, convert, append, read/read, write/wrote/written, group, format/formatted/formatted/formatting, scan,
  reset/reset/reset/resetting, validate, normalise,
  encode,
 decode, copy, skip, cache, sum, yield, resolve, flatten, compare, match, render, register, index, clamp, join, replace
%n noun: value, item, key, list, index/indices, entry/entries, name, number, string, field, record, element, result,
  buffer,
 line, token, path, total, counter, threshold, error, mapping, attribute, argument, node, byte, position, character
%n issue: overflow, missing key, empty input, division by zero, duplicate, trailing space, wrong type, bad index/bad
  indices, timeout,
 negative size, off-by-one error, unsorted list, invalid line, rounding error, long name, stale cache entry/stale
  cache entries
= what
the {topic}
each {topic}
all {topic.s}
the {adj} {topic.s}
the {adj} {noun} of the {topic}
the {noun} of each {topic}
{topic.s} by {noun}
a {adj} {noun}
every {noun} [in|of] the {topic}
the {noun.s} and {noun.s}
= cond
[when|if] the {topic} is {adj}
unless the {noun} is {adj}
[for|from] {what}
[before|after] the {topic} is {do.en}
until the {noun} {do.s} {what}
so that {what} can be {do.en}
without {do.ing} {what}
= clause
{do} {what}
{do} {what} {cond}
{do} and {do} {what}
{do} {what}, then {do} {what}
== docstring
{do} {what} {cond}.
{do} {what} and {do} {what}.
{do} {what}; {issue.s} are {do.en} {cond}.
{do} {what}.
A {adj} {topic} that {do.s} {what} {cond}.
The {noun} is {do.en} {cond}; {what} [stays|remains] {adj}.
[Raises|Raise] an error {cond}, otherwise {do} {what}.
[One|A] {topic} with its {noun.s}: {clause}.
! [Helper|Tool] for {do.ing} {what}: {issue.s} {do} nothing.
! [Given|From] {what}, {clause}.
! [Tell|Say] whether {what} [was|should be] {do.en} {cond}.
! [Used|Called] to {clause}.
== comment
{clause}
{do} {what} here because of {issue.s}
[avoid|ignore|log] {issue.s} {cond}
{what} [was|has been|must be] {do.en} {cond}
[note|reminder]: {what} may {do} {issue.s}
[see|fixes|cf.] issue {count}: {issue} {cond}
TODO: {clause}
{issue.s} [happen|occur] {cond}
! [this|that] {do.s} {what} {cond}
! [keep|make] {what} {adj}, {issue.s} are rare
! [nothing|no {noun}] to {do} {cond}
== module
{do} {what} and {do} {what}.
[Tools|Helpers|Functions] for {do.ing} {what}.
{topic.s} and {topic.s}: {clause}.
[This module|The code below] {do.s} {what} {cond}.
! [Everything|All] that {do.s} {what}.
! [How|Where] to {clause}.
"""

TOPICS = word_list(
    "order user packet node file price token event message record account sensor image player job task page query "
    "session header matrix vector edge vertex path route ticket item product invoice sample signal frame pixel "
    "column row cell table index key value score weight rate label tag word line block chunk page cache queue "
    "stack buffer stream socket client server worker thread process batch layer tensor gradient model feature "
    "cluster station train flight booking hotel guest room seat course student grade exam book author shelf loan "
    "song album track note chord recipe step meal plant seed animal gene protein atom molecule particle orbit "
    "planet star comment post thread feed profile group member role permission policy rule filter pattern field "
    "form button menu window cursor color shape circle polygon point segment angle distance speed force mass "
    "energy voltage current city street region country zone map tile marker layer bus stop trip driver vehicle "
    "engine wheel battery charge payment budget tax bill coupon discount stock trade share bond fund branch "
    "commit patch build test report log counter timer clock schedule calendar date week month shift alarm camera "
    "lens filter door lock badge visitor"
)
"""Singular nouns a module can be about."""

VERBS = word_list(
    "compute parse load update merge split count collect filter sort check build find convert read write group "
    "format scan reset validate normalize encode decode copy select resolve flatten compare match render register "
    "clamp join replace extract prepare make get fetch apply trim scale rank assign measure estimate split_off "
    "drop keep"
)
"""Function names start with one of these."""
