"""How each library is asked for the model that ours is compared with; one module a library."""
