"""From an order to an answer: draws, verdicts, redraws; and what is recorded of it."""
