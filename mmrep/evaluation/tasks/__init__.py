"""The tasks that models are evaluated on."""
