"""How the miniature model is trained."""
