"""What else one might have written: the same lists by other means, each as its own documentation would have it."""
