"""Turns datasets that can only be read in a row into ArrayRecord, which is read at random."""
