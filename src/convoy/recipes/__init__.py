"""Recipes: values of params.yaml that belong together, with what they were measured to reach."""
