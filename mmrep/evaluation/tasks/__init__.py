"""What a model is asked to do on a set, one file a task."""
