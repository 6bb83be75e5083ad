"""What speed needs and training shares: operators, memory, compilation."""
