"""Common English words for counting letters."""

from __future__ import annotations

_TEXT = """
address advance airport already ancient animal apple apricot arrival assassin autumn avenue balance balloon banana
barrel basement basket battle beekeeper believe better between bicycle blanket blossom bookkeeper bottle bubble butter
button cabbage cabinet cabin cafeteria camera canal candle carpet carrot castle cellar cement century chapter cheese
cherry cinnamon circus classroom coconut coffee collection college color committee common concept confidence copper
corner cotton council country cousin crocodile curtain custom dentist degree delicious desert dinner discuss distance
distinct doctor dolphin donkey dragon drawer dribble eleven elephant elevator engine evening event everywhere evidence
excellence experience factory family feather fifteen finger fireplace flannel flower forest fortune freedom freezer
garden general giraffe glasses gravity guitar hammer happiness harbor helmet history honest horizon hospital hotel
however hundred illness imagine impossible independence indigo insect institution interior island jacket jewel journey
kettle kingdom kitchen kitten ladder language lantern lemon letter level library lightning limit lizard lobster
magician mammal marble market mattress meadow member memory million minimum mirror mississippi moment monkey mosquito
mountain museum mushroom mustard nation necklace needle nothing number object ocean october office onion opinion orange
orchard origin orphan oxygen palace panda panorama papaya paper parallel parrot passage peasant pebble pencil pepper
person piano picture pillow pineapple pirate planet plastic pocket poison possess possible potato preference prison
problem program purple puzzle question rabbit radish rainbow raspberry rattle receive recipe referee reference religion
remember reverse ribbon river robber rocket saddle salmon sardine savanna scissors season second secret sentence
session seven severe shadow shampoo silver sister sleeve smooth soldier spirit squirrel stadium station statistics
statue stocking storm strawberry stress student success suddenness summer sunset surprise sweater symbol table taste
tattoo tennessee tennis terrace tests theater thirteen thunder ticket timber titanic toast tobacco tomato tomorrow
tonight tortoise total tourist tower traffic travel treasure trombone trousers trumpet tunnel turtle twenty umbrella
uncle uniform valley vanilla vegetable velvet victory village violin visit vitamin volcano voodoo wagon walnut warrior
water weather wedding weekend whistle willow window winter wizard wonder wooden yellow yogurt zebra zipper
"""
WORDS = _TEXT.split()
