"""Copy one tracking store to another and verify that everything arrived."""
