"""Pure decisions of the pool: no clock, chance, async, SQL, protobuf or logging. Time is a parameter."""
