"""Texts as shields read them: brought into one form, with every place in it traced back to the original."""
