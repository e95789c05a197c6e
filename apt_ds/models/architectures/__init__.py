"""The block tables of every supported architecture."""
