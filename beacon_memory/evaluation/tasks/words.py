"""The words that made-up sayings are filled with; no name, town, trade or pet of them is one that beacons are trained
on.
"""

from __future__ import annotations

NAMES = (
    *("Aiko", "Alban", "Amara", "Anselm", "Astrid", "Basil", "Beatriz", "Bjorn", "Callum"),
    *("Chiara", "Corinne", "Dagny", "Darius", "Delphine", "Edda", "Emil", "Enzo", "Esther", "Fabian", "Fergus"),
    *("Fiona", "Florin", "Gideon", "Gloria", "Hamid", "Hedda", "Henrik", "Ignacio", "Ingrid", "Isaac"),
    *("Jarek", "Joaquin", "Josefa", "Kamala", "Keiko", "Lars", "Leonie", "Lorenzo", "Lucinda"),
    *("Marisol", "Maud", "Mei", "Milan", "Mirela", "Nerys", "Niamh", "Odile", "Olaf", "Ottilie", "Paloma"),
    *("Pavel", "Petra", "Rafael", "Ramona", "Rhys", "Rufus", "Sabine", "Selma", "Signe", "Silvio", "Tamsin", "Tariq"),
    *("Thea", "Tobias", "Ulrike", "Valentin", "Viggo", "Winifred", "Xenia", "Yannick", "Yara", "Zoltan"),
)
KIN = ("my cousin", "my colleague", "my aunt", "my flatmate", "my niece", "my old schoolmate", "my uncle", "my godson")
TOWNS = (
    *("Ashford", "Bilbao", "Brno", "Bruges", "Calgary", "Coimbra", "Cork", "Dundee"),
    *("Edmonton", "Galway", "Gdansk", "Graz", "Halifax", "Inverness", "Kilkenny", "Kyoto"),
    *("Lausanne", "Leipzig", "Limerick", "Linz", "Ljubljana", "Lucerne", "Mannheim", "Montreal"),
    *("Murcia", "Norwich", "Oaxaca", "Odense", "Ostend", "Padua", "Plymouth", "Poznan", "Regina"),
    *("Rennes", "Rotterdam", "Savannah", "Sheffield", "Stavanger", "Swansea", "Tartu"),
    *("Tromso", "Turku", "Valencia", "Verona", "Vilnius", "Winnipeg", "Wroclaw"),
)
PETS = (
    *("Apricot", "Bandit", "Barnaby", "Bramble", "Cashew", "Chutney", "Clementine", "Dumpling", "Figaro", "Fudge"),
    *("Gizmo", "Gnocchi", "Huckleberry", "Jellybean", "Kiwi", "Marbles", "Marzipan", "Moose", "Mustard", "Noodle"),
    *("Nutmeg", "Paprika", "Parsley", "Pickle", "Pistachio", "Popcorn", "Pretzel", "Radish", "Rascal", "Rhubarb"),
    *("Scout", "Sesame", "Snickers", "Sprout", "Tofu", "Truffle", "Turnip", "Waffles", "Wasabi", "Ziggy"),
)
ANIMALS = ("rabbit", "parrot", "tortoise", "hamster", "canary", "guinea pig", "ferret", "donkey", "pony", "goat")
JOBS = (
    *("archaeologist", "beekeeper", "blacksmith", "bookbinder", "brewer", "cartographer", "chiropractor", "cobbler"),
    *("conductor", "dietitian", "florist", "forester", "geologist", "glazier", "interpreter"),
    *("marine biologist", "midwife", "notary", "paramedic", "plumber", "potter"),
    *("roofer", "saddler", "sommelier", "stonemason", "surveyor", "tax adviser", "upholsterer"),
)
ALLERGENS = (
    *("celery", "shellfish", "sesame seeds", "mustard", "lupin", "strawberries", "peaches", "hazelnuts", "kiwi fruit"),
    *("cashews", "oysters", "soy", "buckwheat", "rye", "pineapple", "cinnamon", "coriander", "sunflower seeds"),
)
INSTRUMENTS = (
    *("accordion", "banjo", "bassoon", "bagpipes", "cello", "clarinet", "cornet", "double bass", "dulcimer", "harp"),
    *("harpsichord", "mandolin", "oboe", "trombone", "tuba", "ukulele", "viola", "xylophone", "zither", "French horn"),
)
GIFTS = (
    *("a bread knife", "a compass", "a feather pillow", "a globe", "a hammock"),
    *("a jigsaw puzzle", "a kite", "a leather wallet", "a magnifying glass", "a music box", "a pair of binoculars"),
    *("a pasta machine", "a pepper mill", "a picnic blanket", "a pocket watch", "a sewing kit", "a silk scarf"),
    *("a snow globe", "a teapot", "a terrarium", "a thermos flask", "a toolbox", "a wine rack"),
    *("an apron", "an atlas", "an easel", "an umbrella", "a sundial", "a cactus", "a bird feeder", "a watering can"),
)
FIRST = (
    *("Amber", "Blue", "Brass", "Broken", "Copper", "Crimson", "Crooked", "Distant", "Drowsy", "Empty", "Frozen"),
    *("Gilded", "Glass", "Hidden", "Hollow", "Iron", "Ivory", "Jolly", "Laughing", "Lonely", "Lucky", "Marble"),
    *("Midnight", "Misty", "Paper", "Patient", "Purple", "Restless", "Rusty", "Scarlet", "Silent", "Sleepy"),
)
SECOND = (
    *("Anchor", "Badger", "Bicycle", "Candle", "Chimney", "Compass", "Crow", "Dolphin", "Feather", "Fiddler"),
    *("Fox", "Gardener", "Goose", "Harbour", "Hedgehog", "Heron", "Kettle", "Lantern", "Lighthouse", "Magpie"),
    *(
        "Mirror",
        "Orchard",
        "Otter",
        "Owl",
        "Pelican",
        "Piper",
        "Quill",
        "River",
        "Sailor",
        "Sparrow",
        "Spoon",
        "Tailor",
    ),
)
STREETS = (
    *("Acorn", "Bramley", "Chestnut", "Cloister", "Dovecote", "Elder", "Ferry", "Foundry", "Hawthorn", "Larkspur"),
    *("Linden", "Meadow", "Mulberry", "Orchard", "Primrose", "Quarry", "Rowan", "Sycamore", "Tannery", "Weaver"),
)
WAYS = ("Lane", "Road", "Street", "Close", "Terrace", "Hill")
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November"),
    "December",
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
