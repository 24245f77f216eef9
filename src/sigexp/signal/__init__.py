"""Reference mathematics: filters, colour, mosaics, image quality. No learning happens here."""
