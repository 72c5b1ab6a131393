"""Who gave how much lately, in which teams, and what the pool did with it."""
