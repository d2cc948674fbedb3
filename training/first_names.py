"""Common first names that take the place of `[MALE]`, `[FEMALE]` and `[NEUTRAL]` in anonymised stories."""

MALE_NAMES = """
    Tom Jack John Ben Sam David James Michael Peter Paul Mark Tim Joe Bob Bill Dan Adam Luke Henry Charlie George
    Harry Oliver Max Leo Eric Kevin Brian Steve Matt Nick Ryan Jake Alex Mike Fred Carl Frank Jim Ted Robert Will
    Daniel Andrew
""".split()
FEMALE_NAMES = """
    Amy Anna Mary Sarah Jane Kate Emma Lucy Emily Lily Alice Julia Laura Susan Lisa Jenny Kelly Rachel Sophie Ella
    Grace Rose Molly Nina Maria Helen Ellen Ruth Claire Beth Megan Hannah Jill Gina Tina Marie Margaret Elizabeth
    Nancy Carol
""".split()
NEUTRAL_NAMES = """
    Sam Alex Robin Jamie Taylor Casey Jordan Morgan Riley Charlie
""".split()
