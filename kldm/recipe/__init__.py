"""Recipes: from text to trees and back, and from trees to typed objects."""

from kldm.recipe.building import Tree, build
from kldm.recipe.signatures import describe, summary
from kldm.recipe.text import overridden, parse_overrides, read_recipe, recipe_text, write_recipe
from kldm.recipe.user_code import load_code

__all__ = [
    "Tree",
    "build",
    "describe",
    "load_code",
    "overridden",
    "parse_overrides",
    "read_recipe",
    "recipe_text",
    "summary",
    "write_recipe",
]
