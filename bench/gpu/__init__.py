"""What a GPU would do, without one: a step traced on tensors that hold no numbers, and what it should take."""
