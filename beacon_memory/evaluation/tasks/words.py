"""The words that made-up sayings are filled with; no name, town, trade or pet of them is one that beacons are trained
on.
"""

from __future__ import annotations

NAMES = (
    *("Adele", "Aiko", "Alban", "Amara", "Anselm", "Astrid", "Basil", "Beatriz", "Bjorn", "Callum", "Carmen", "Cedric"),
    *("Chiara", "Corinne", "Dagny", "Darius", "Delphine", "Edda", "Emil", "Enzo", "Esther", "Fabian", "Fergus"),
    *("Fiona", "Florin", "Gideon", "Gloria", "Hamid", "Hedda", "Henrik", "Ignacio", "Imogen", "Ingrid", "Isaac"),
    *("Jarek", "Joaquin", "Josefa", "Judith", "Kamala", "Keiko", "Lars", "Leonie", "Lorenzo", "Lucinda", "Magnus"),
    *("Marisol", "Maud", "Mei", "Milan", "Mirela", "Nerys", "Niamh", "Noor", "Odile", "Olaf", "Ottilie", "Paloma"),
    *("Pavel", "Petra", "Rafael", "Ramona", "Rhys", "Rufus", "Sabine", "Selma", "Signe", "Silvio", "Tamsin", "Tariq"),
    *("Thea", "Tobias", "Ulrike", "Valentin", "Viggo", "Winifred", "Xenia", "Yannick", "Yara", "Zoltan"),
)
KIN = ("my cousin", "my colleague", "my aunt", "my flatmate", "my niece", "my old schoolmate", "my uncle", "my godson")
SURNAMES = (
    *("Abernathy", "Achterberg", "Baptista", "Calloway", "Castellano", "Drummond", "Eklund", "Fairbanks", "Gallagher"),
    *("Haverford", "Iyengar", "Jankowski", "Kowalczyk", "Lindqvist", "Macalister", "Nakagawa", "Okonkwo", "Pemberton"),
    *("Quarrington", "Rasmussen", "Santangelo", "Thackeray", "Underhill", "Vandermeer", "Whitlock", "Yamamoto"),
)
TOWNS = (
    *("Ashford", "Bergen", "Bilbao", "Bristol", "Brno", "Bruges", "Calgary", "Coimbra", "Cork", "Dresden", "Dundee"),
    *("Edmonton", "Exeter", "Galway", "Gdansk", "Genoa", "Graz", "Halifax", "Hobart", "Inverness", "Kilkenny", "Kyoto"),
    *("Lausanne", "Leeds", "Leipzig", "Limerick", "Linz", "Ljubljana", "Lucerne", "Malmo", "Mannheim", "Montreal"),
    *("Murcia", "Nantes", "Norwich", "Oaxaca", "Odense", "Ostend", "Padua", "Perth", "Plymouth", "Poznan", "Regina"),
    *("Rennes", "Rotterdam", "Salzburg", "Savannah", "Sheffield", "Split", "Stavanger", "Swansea", "Tartu", "Toledo"),
    *("Trieste", "Tromso", "Turku", "Utrecht", "Valencia", "Verona", "Vilnius", "Winnipeg", "Wroclaw", "York"),
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
    *(
        "conductor",
        "dietitian",
        "electrician",
        "florist",
        "forester",
        "geologist",
        "glazier",
        "interpreter",
        "jeweller",
    ),
    *("locksmith", "marine biologist", "midwife", "notary", "optician", "paramedic", "pharmacist", "plumber", "potter"),
    *("roofer", "saddler", "sommelier", "stonemason", "surveyor", "tailor", "tax adviser", "upholsterer", "vet"),
)
DISHES = (
    *("aubergine lasagne", "bean stew", "beetroot salad", "butter chicken", "cabbage rolls", "carrot cake", "ceviche"),
    *("cheese fondue", "chickpea curry", "clam chowder", "couscous", "fish pie", "gazpacho", "goulash", "kimchi"),
    *("leek quiche", "lemon tart", "miso soup", "moussaka", "mushroom risotto", "onion soup", "paella", "pea soup"),
    *("pierogi", "plum crumble", "potato gratin", "pumpkin ravioli", "ratatouille", "shakshuka", "spinach pie"),
    *("stuffed peppers", "tabbouleh", "tiramisu", "tomato tarte", "treacle pudding", "walnut bread"),
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
    *("a bread knife", "a chess set", "a compass", "a feather pillow", "a fountain pen", "a globe", "a hammock"),
    *("a jigsaw puzzle", "a kite", "a leather wallet", "a magnifying glass", "a music box", "a pair of binoculars"),
    *("a pasta machine", "a pepper mill", "a picnic blanket", "a pocket watch", "a sewing kit", "a silk scarf"),
    *("a snow globe", "a teapot", "a telescope", "a terrarium", "a thermos flask", "a toolbox", "a wine rack"),
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
PARTS = ("mornings", "afternoons", "evenings")
