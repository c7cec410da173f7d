"""Carry one tracking store over to another, and prove that everything arrived."""
