"""What all strategies run on: rounds, messages, the trained tail, aggregation."""
