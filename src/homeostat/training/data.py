"""What the parts of a recipe have in common: they are data, and they refuse what they do not know."""

from pydantic import BaseModel, ConfigDict


class Data(BaseModel):
    """A part of a recipe: frozen, compared by value, and without room for misspelt fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")
