"""Errors a user may meet. Each carries one sentence that says what was wrong and what to do about it.

Every class derives from `PictaleError`, so `except PictaleError as error: print(error)` is all that a command line or a
page needs; anything else that escapes is a bug of ours and keeps its traceback.
"""


class PictaleError(ValueError):
    """Base of all errors caused by input, files or settings rather than by a bug."""


class ImageError(PictaleError):
    """A file or object that cannot be used as a photograph."""


class StyleError(PictaleError):
    """An unknown, damaged or incompatible style, or a text too short to make one."""


class ModelFolderError(PictaleError):
    """A model folder or Hub repository that is missing, incomplete or damaged."""


class DataError(PictaleError):
    """Training or evaluation data that cannot be read."""


class RecipeError(PictaleError):
    """A training recipe with an unknown, missing or impossible setting."""


class TextError(PictaleError):
    """Sentences or words that cannot be compared: none given, or unknown to the model."""


class StoryError(PictaleError):
    """A story file that is damaged, foreign or newer than this program, or a step that a story cannot take."""
