"""After training: held-out answers, their scores, and the verdict."""
