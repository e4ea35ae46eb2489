"""Why one head beats another: activations, patch weights, what is lost without the salient part, at other sizes."""
