"""Networks of other people: their weight files, and timm's models with them."""
