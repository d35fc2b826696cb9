"""Edits that leave the rest of a photo alone: masks, the region that is generated, drift undone, pasting back."""
