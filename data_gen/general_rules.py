"""The grammar of general prose: stories, places, nature, cooking, letters, talk and local news."""

GENERAL_RULES = """
% adj: old, small, long, quiet, warm, cold, bright, dark, narrow, wide, green, grey, heavy, strange, young, gentle,
  wild,
 empty, crowded, golden, dusty, wooden, broken, soft, sweet, bitter, sharp, tired, happy, lonely, famous, ancient,
  modern,
 northern, southern, muddy, windy, silent, noisy, round, crooked, pale, painted, hidden, rusty, gleaming, shallow, deep,
 frozen, hungry, patient, clever, stubborn, careless, curious, polite, faded, forgotten, cheerful, gloomy, steep, ripe
% mood: tired, happy, afraid, proud, curious, calm, restless, angry, hopeful, ashamed, lost, glad, puzzled, grateful,
  lonely,
 nervous, hungry, bored, relieved, suspicious, delighted, silent, jealous, sleepy
% adv: slowly, quietly, suddenly, carefully, gladly, often, rarely, softly, loudly, early, late, almost, always, never
  quite,
 at last, gently, hurriedly, politely, twice, alone, once more, in silence, without a word, with a smile, patiently,
  barely
%n creature: dog, cat, horse, fox, owl, crow, hen, goat, bee, wolf/wolves, bear, heron, otter, hare, sparrow, trout,
  mule,
 swan, lizard, moth, badger, seal, goose/geese, mouse/mice, beetle, frog, donkey, hedgehog, swallow, deer/deer, lamb,
  eagle
%n thing: door, window, lamp, boat, letter, coat, basket, bell, book, map, clock, chair, knife/knives, rope, kettle,
  violin,
 bicycle, umbrella, candle, mirror, ladder, bottle, key, blanket, wheel, stone, photograph, hat, cup, drum, suitcase,
  shovel,
 lantern, ring, newspaper, piano, kite, saddle, wagon, scarf/scarves, bench, fence, chimney, painting, shoe, bucket,
  feather
%n place: house, garden, street, river, bridge, forest, hill, market square, harbour, mill, church, school, kitchen,
  station,
 meadow, island, cave, orchard, library/libraries, inn, barn, tower, cellar, lake, beach, valley, village, cemetery,
  bakery,
 workshop, attic, lighthouse, theatre, hospital, path, courtyard, fountain, field, well, canal, ferry landing, museum,
  castle
%n folk: child/children, woman/women, man/men, neighbour, farmer, sailor, teacher, baker, doctor, soldier, stranger,
  painter,
 fisherman/fishermen, shepherd, widow, musician, traveller, cook, gardener, blacksmith, nurse, student, cousin, uncle,
  aunt,
 grandmother, brother, sister, poet, miller, carpenter, postman/postmen, thief/thieves, king, queen, beggar, tailor,
  guest
%n plant: oak, willow, rose, nettle, apple tree, fern, birch, poppy, thistle, vine, moss/mosses, pear tree, reed,
  ivy/ivies,
 pine, lily, lavender bush, mushroom, clover, heather, cherry tree, hazel, orchid, sunflower, cactus/cacti, elm,
  maple, daisy
% food: bread, onion, butter, flour, milk, cheese, honey, garlic, rice, lentils, barley, cream, sugar, salt, pepper,
  parsley,
 thyme, ginger, cinnamon, lemon juice, olive oil, tomatoes, beans, cabbage, carrots, potatoes, apples, walnuts, raisins,
 eggs, vinegar, mustard, yeast, cumin, spinach, leeks, plums, oats, almonds, mint
%n idea: dream, story/stories, secret, song, promise, memory, quarrel, journey, game, wish, lesson, joke, rumour,
  mistake,
 habit, hope, plan, fear, question, friendship, adventure, tradition, festival, winter, childhood, war, summer,
  custom, riddle
% weather: rain, snow, fog, wind, sunshine, thunder, frost, mist, drizzle, hail, heat, moonlight, dusk, storm light,
  sleet
%v move: walk, run/ran/run, ride/rode/ridden, climb, wander, hurry, swim/swam/swum, sail, crawl, march, turn, return,
  drift,
 stroll, creep/crept, travel/travelled/travelled/travelling, come/came/come, go/went/gone, limp, stumble, dance, row
%v do: carry, open, close, find/found, lose/lost, mend, clean, paint, steal/stole/stolen, hide/hid/hidden, sell/sold,
  buy/bought,
 watch, follow, remember, forget/forgot/forgotten/forgetting, draw/drew/drawn, break/broke/broken, burn, wash, lift,
  push,
  bring/brought,
 leave/left, borrow, throw/threw/thrown, keep/kept, build/built, admire, photograph, count, polish, drop, pull, describe
%v feel: love, fear, miss, hate, know/knew/known, trust, admire, envy, like, need, pity, understand/understood
%v say: say/said, whisper, answer, ask, shout, cry, murmur, reply, explain, laugh, sing/sang/sung, add, mutter, sigh
%v cook: chop, boil, stir, fry, bake, peel, mix, slice, simmer, roast, knead, grate, season, drain, whisk, soak, warm,
  melt
%v grow: grow/grew/grown, bloom, spread/spread, wither, flower, thrive, ripen, fade, sprout, sway, droop, turn green
%v live: live, sleep/slept, feed/fed, nest, hunt, breed/bred, gather, swarm, shelter, rest, call, hide/hid/hidden, wait
= np
the {adj} {thing}
a {adj} {thing}
the {thing} [of|that belonged to|by] the {folk}
{his} {thing}
the {creature}
the {folk} [with|without|beside] the {thing}
[three|two|a dozen|many|several|a few] {adj} {thing.s}
the {thing.s} [in|from|behind|under] the {place}
a {idea} about the {place}
the {idea} of {his} {folk}
= where
[in|near|behind|beyond|outside|across] the {place}
[through|past|along|towards] the {adj} {place}
[under|beside|between] the {plant.s}
by the {place} [at|of|near] {town}
on the [road|way] to {far_town}
[at the edge|in the middle|on the far side] of the {place}
from {place} to {place}
[where|near where] the {plant.s} {grow}
= when
[one|that|every|the next] [morning|evening|night|afternoon|autumn]
in the {weather}
[before|after|until] [breakfast|sunset|dawn|the {idea}|supper|midnight]
[as|while] the {weather} [came|lifted|began|held]
on {weekday}
[all|that] [summer|winter|spring|day|night]
[in|since] {old_year}
for {few} [days|years|hours|weeks]
[when|after] the {folk} had {move.en} away
= did
{move.ed} {where}
{do.ed} {np}
{do.ed} {np} {where}
{adv} {do.ed} {np}
{move.ed} {where} and {do.ed} {np}
{feel.ed} the {folk} [more|less] than [anyone|{np}]
{say.ed} {adv}, "{talk}," and {move.ed} {where}
was [too|very|never] {mood} [to {move}|to {do} {np}|about the {idea}]
= talk
I {feel} the {place}
where is the {thing}
we must {move} {when}
the {creature} has {do.en} the {thing}
you [never|always] {do} {np}
there is {weather} {where}
nobody {feel.s} a {folk}
tell me the {idea} of the {thing}
did you {do} the {thing} {where}
I have {do.en} {np}
[come|sit] with me {where}
the {folk.s} will {move} {when}
= someone
{hero}
{he}
{friend}
the {folk}
the {adj} {folk}
a {folk} from {far_town}
{his} {folk}
{hero} and {friend}
the {folk.s}
nobody [in|from] {town}
== story
{when}, {hero} {did}.
{someone} {did}, and {someone} {did}.
{someone} {did} because {he} {feel.ed} {np}.
"{talk}," {say.ed} {someone}.
"{talk}?" {someone} {say.ed} {adv}. "{talk}."
The {creature} {did}, but {someone} {did}.
{he} had {do.en} {np} {when}, and now {he} was {mood}.
{hero} and {friend} {did} {when}.
There was {weather} {where}, and {np} {move.ed} {where}.
[So|Then|But|At last] {someone} {did}.
{when} {someone} {did}; {when} {someone} {did}.
[If|Had] {someone} had only {do.en} {np}, {someone} would have {move.en} {where}.
{where} stood a {adj} {place}, {adj} and {adj}, where {someone} {did}.
{hero} [thought|dreamed|wondered] about {np} and about {np}.
! [Nobody|Everyone] who {did} could say why {someone} {did}.
! [It was|That was] {when} that {someone} {did}.
! {someone}, {mood} and {mood}, {did}.
! {np} {where} made {hero} {mood}, for {he} {feel.ed} {np}.
! "[Listen|Wait|Look]," {someone} {say.ed}, "{talk}, and {talk}."
== sights
{town} [lies|stands] {where}, [about|some] {count} [miles|kilometres] from {far_town}.
The {adj} {place} [was built|was opened|burned down] in {old_year} by {adj} {folk.s} from {some_town}.
[Visitors|Travellers] [come|stop here] to {do} the {thing.s} and to {move} {where}.
[Most|Some|Few] of the {count} [houses|families] {where} {do} {thing.s} or {do} {thing.s}.
{when} the {place} is {adj} with {plant.s} and {weather}.
[Its|The] {place}, {adj} and {adj}, [holds|shows|houses] {count} {thing.s} [of|from] the {idea} of {old_year}.
The [ferry|bus|train] from {some_town} [stops|arrives] {where} {few} times a day.
[According to|In] an old {idea}, a {folk} {did}, and the {place} has been {adj} ever since.
[Between|From] the {place} and the {place} [runs|winds] a {adj} path {where}.
{someone} [taught|was born|lived] {where} until {old_year} and {do.ed} {np}.
The {idea} of {town} is [held|sung|told] {when}, when {folk.s} {move} {where}.
! [North|South|East|West] of the {place} the land is {adj}, and {creature.s} {live} {where}.
! [For centuries|Until {old_year}] the {folk.s} of {town} {do.ed} {thing.s} {where}.
! [The oldest|The tallest] {place} [dates from|goes back to] {old_year}; a {folk} {do.ed} it {when}.
== nature
The {adj} {creature} [lives|sleeps|nests|hunts] {where} and [eats|feeds on] {plant.s} and {creature.s}.
{creature.s} {live} {where}, {adv}, {when}.
[In spring|In autumn|In winter|At night] the {plant.s} {grow} and the {creature.s} {live} {where}.
A {adj} {creature} can {move} [for {few} hours|up to {count} metres] [without food|{where}].
[Young|Old|Female|Wild] {creature.s} {live} [alone|in pairs|in groups of {few}] {when}.
The [leaves|roots|flowers|seeds] of the {plant} are {adj} and {adj}, and {creature.s} {feel} them.
[Once|Today] there were [only|about] {count} {creature.s} left {where}.
[When|Where] the {weather} is {adj}, {plant.s} and {plant.s} {grow} {where}.
[People|Farmers|Children] {feel} the {creature} because it [calls|moves] {adv} {where}.
! [Neither|Unlike the {creature}, neither] the {creature} nor the {plant} [minds|fears] {weather}.
! [Watch|Look for] {creature.s} {where}, {when}: they {live} {adv}.
! [Few|Many] {creature.s} {live} as {adv} as the {creature} {where}.
! [By day|By night] the {plant} [looks|smells] {adj}, and {adj} {creature.s} {live} {where}.
! {weather} and {weather} [drive|send|bring] the {creature.s} {where}.
== cooking
{cook} the {food} with {food} and {food} for {few} minutes, then {cook} the {food}.
[Add|Pour in|Scatter over] {count} grams of {food} and {cook} [until soft|until golden|gently|over a low heat].
{cook} {few} spoons of {food} with a little {food}, [and {cook} again|and leave to cool|stirring {adv}].
[My {folk}|{hero}|Every {folk} in {town}] {cook.s} the {food} {when} and [never uses|always adds] {food}.
[Meanwhile|While it is cooking], {cook} the {food} and {cook} the {food} in a {adj} pan.
[Serve|Eat] it {adj} with {food}, {food} and {adj} {food}.
[If|When] the {food} [smells|looks|tastes] {adj}, [add|stir in] some {food} or {cook} it {few} minutes longer.
The [soup|stew|cake|pie|dough] should [rest|stand] {where} for {few} hours.
! [First|Begin:] {cook} {food}, {food} and {food} [together|in turn].
! [Instead of|In place of] {food} [you can|many] {cook} {food}, {adj} and {adj}.
! [Guests|Children] in {town} {feel} it {adj}, with {food} and {food} on the side.
! [Taste it|Look at it] after {few} minutes; if it is {adj}, {cook} more {food}.
! [Too much|A pinch of] {food} makes [it|the {food}] {adj}.
== letter
[Thank you|Many thanks] for the {thing} and for your {adj} letter of {date}.
We [arrived|have been] {where} for {few} days, and {friend} {did}.
[Do you|Can you still] {feel} the {place} {where}, where we {did}?
[Yesterday|Last week|On {weekday}] I {did}, and {someone} {did}.
The [children|neighbours|dogs] are {mood}, the {place} is {adj}, and there is {weather} {when}.
[Please|If you can,] {do} {np} [for me|before you come] and {do} the {thing.s}.
I am {mood} [that|because] {someone} {did}.
I [hope|wish|think] you will {move} {where} with us {when}.
[Your|My] {folk} {say.s} "{talk}", but I {feel} {np}.
! [How are you|Are you well], and [does|can] {friend} still {do} {np} {where}?
! [I must stop|Enough for today]: {someone} {did} and I am {mood}.
! [Mother|Father|Everybody] asks whether {friend} {did}.
! [Here|At home] the {place} is {adj} and the {creature.s} {live}.
! [Imagine|Believe me]: {when} {someone} {did}!
== news
[Residents|Neighbours|Volunteers] {where} {do.ed} {np} on {weekday} after {someone} {did}.
{count} [people|visitors|pupils] [attended|came to] the {idea} at the {place} {when}.
{hero_full}, a {folk} from {town}, {did}, and [the police|the mayor|a {folk}] {do.ed} {np}.
The [council|mayor|museum|school] will {do} the {adj} {place} [next {month}|from {weekday}|by {next_year}].
"{talk}," {hero} told [reporters|this newspaper|the crowd] {where}.
[The team|{town}] [won|lost|drew] {few} to {few} against {far_town} {when}.
[A fire|A storm|A flood|An accident] {where} [damaged|destroyed] {few} {place.s} and [hurt|frightened] {count}
  {creature.s}.
[The new|An exhibition at the] {place} [opens|closes] on {date}; [entry|the concert] costs {price}.
! [Tickets|Places] for the {idea} {where} cost {price}, {hero} [said|announced] on {date}.
! [Nobody was hurt|All ended well] when {someone} {did}.
! [Witnesses|Passers-by] saw [how|that] {someone} {did}.
! [Plans|Money] for a {adj} {place} {where} [drew|met] {count} [letters|complaints] {when}.
! [After|Following] {few} days of {weather} the {place.s} {where} are {adj}.
= any
{story}
{story}
{sights}
{nature}
{cooking}
{letter}
{news}
== title
The {adj} {thing}
The {folk} and the {creature}
[A visit to|The history of|Walking in|Seasons in] {town}
{food} with {food} and {food}
[Dear|My dear] {friend_full},
{creature.s} and {plant.s} [of|in] {region}
[Notes|News] from {town}
! [How|Why] the {folk} {do.ed} the {thing}
! [On|About] {creature.s}, {plant.s} and {weather}
! {town} and its {folk.s}
"""
