"""Words and names that tasks plant. Each split has its own half of every list."""

from __future__ import annotations

import random

_NOUNS = """
anchor apple arrow attic autumn avocado bakery balcony bamboo banjo barrel basket beacon beetle
bicycle biscuit blanket blossom bottle branch bridge broom bucket button cabin cactus camel candle
canoe canyon carpet carrot castle cedar cellar chimney cinnamon circus clover cobbler coconut
compass copper coral cotton cradle crater cricket crystal curtain dagger daisy desert diamond
dolphin donkey dragon drawer drum eagle easel elbow ember engine falcon feather fennel ferry
fiddle flute forest fossil fountain garden garlic ginger giraffe glacier goblet granite guitar
hammer harbor harvest hazel helmet heron hinge honey hornet iceberg island ivory jacket jasmine
jungle kettle kitten ladder lagoon lantern lavender lemon leopard lighthouse lizard locket lobster
magnet mango maple marble meadow melon mirror mitten monkey mosaic mustard napkin needle nickel
nutmeg oasis olive onion orchard orchid otter oyster paddle palace panther parrot pebble pelican
pepper piano pigeon pillow pirate planet plum pocket poppy prairie pumpkin puppet quarry quilt
rabbit radish raft raisin ribbon river robin rocket saddle saffron salmon sandal scarf shovel
silver spider sparrow spoon squirrel statue stove sunset swallow tailor teapot temple thimble
thistle ticket tiger timber tomato trumpet tulip tunnel turnip turtle tuxedo umbrella valley
velvet violet violin volcano wagon walnut whistle willow window winter wizard zebra zipper
"""
_FIRST = """
Adele Albert Amina Anton Beatrice Bruno Camila Carlos Celine Cedric Dalia Desmond Elena Emil
Farida Felix Gloria Gustav Hanna Hector Ingrid Ivan Jasmin Julian Kaito Katrin Leila Leon Marta
Milo Nadia Nils Olga Oscar Paula Pedro Rosa Rafael Selma Stefan Tamara Tobias Ursula Victor
Wanda Xavier Yusuf Yvonne Zoltan Zora
"""
_LAST = """
Abbott Almeida Bergman Brandt Calloway Castell Delgado Dunmore Eklund Escobar Fairbanks Fontaine
Galloway Grimaldi Hartmann Holloway Ibarra Ivanov Jansen Jimenez Kovacs Kowalski Lindqvist Lombardi
Mancini Merriweather Nakamura Novak Okafor Olsen Pemberton Petrov Quintero Quigley Rasmussen
Romano Sandoval Sinclair Takahashi Thornton Ulrich Underhill Vasquez Voss Wakefield Winslow
Yamamoto Yates Zapata Zimmer
"""
_CITIES = """
Lisbon Oslo Vienna Prague Dublin Athens Madrid Warsaw Helsinki Budapest Seville Naples Hamburg
Geneva Krakow Porto Bergen Zagreb Riga Tallinn Valencia Marseille Antwerp Salzburg Cairo Nairobi
Lima Havana Toronto Sydney
"""


def nouns(split: str) -> list[str]:
    """About 110 common concrete nouns, lower case."""
    return _half(_NOUNS, split)


def cities(split: str) -> list[str]:
    """15 cities."""
    return _half(_CITIES, split)


def first_names(split: str) -> list[str]:
    """25 first names."""
    return _half(_FIRST, split)


def full_name(split: str, rng: random.Random) -> str:
    """An invented person: first and last name."""
    return f"{rng.choice(first_names(split))} {rng.choice(_half(_LAST, split))}"


def digits(rng: random.Random, count: int = 7) -> str:
    """A number of ``count`` digits that does not begin with 0."""
    return str(rng.randrange(10 ** (count - 1), 10**count))


def _half(words: str, split: str) -> list[str]:
    return words.split()[0 if split == "tune" else 1 :: 2]
