"""Fine-tuning methods: the table, and how a method is attached to a base model."""
