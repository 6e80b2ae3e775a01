"""How cost grows with what is asked: curves measured against servers of their own."""
