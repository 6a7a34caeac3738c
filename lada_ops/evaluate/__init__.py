"""What compression cost: a student beside its teacher, in size, speed, score and loyalty."""
