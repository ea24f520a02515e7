"""Away from a weaker estimate: what is weak, and how the difference is used."""
