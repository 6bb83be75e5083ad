"""Adapters: what is trained per noise range, of parts of our own and of peft's."""
